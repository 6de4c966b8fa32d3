"""Pictures: files in and out without loss, one or many through a pipeline."""

from textir.images.explanation import Explanation, what_was_done
from textir.images.jobs import Job, list_left_out, plan_jobs, restore_files
from textir.images.picture import (
    EXTENSIONS,
    MAX_PIXELS,
    Picture,
    UnusableImageError,
    encode_picture,
    is_image,
    list_images,
    output_name,
    picture_from_pil,
    read_picture,
    to_pixels,
    to_tensor,
    write_picture,
)
from textir.images.restoration import restore_picture, stage_clock

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "Explanation",
    "Job",
    "Picture",
    "UnusableImageError",
    "encode_picture",
    "is_image",
    "list_images",
    "list_left_out",
    "output_name",
    "picture_from_pil",
    "plan_jobs",
    "read_picture",
    "restore_files",
    "restore_picture",
    "stage_clock",
    "to_pixels",
    "to_tensor",
    "what_was_done",
    "write_picture",
]
