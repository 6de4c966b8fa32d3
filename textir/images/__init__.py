"""Pictures: files in and out without loss, one or many through a pipeline."""

from textir.images.editing import Editing, edit_picture
from textir.images.estimates import Estimate, estimate
from textir.images.explanation import Explanation, what_was_done
from textir.images.jobs import (
    Job,
    Outcome,
    Report,
    Run,
    list_left_out,
    plan_jobs,
    restore_files,
)
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
from textir.images.plans import find_places
from textir.images.records import read_record
from textir.images.restoration import Restoring, restore_picture, stage_clock
from textir.images.shares import Share, split_by_pixels

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "Editing",
    "Estimate",
    "Explanation",
    "Job",
    "Outcome",
    "Picture",
    "Report",
    "Restoring",
    "Run",
    "Share",
    "UnusableImageError",
    "edit_picture",
    "encode_picture",
    "estimate",
    "find_places",
    "is_image",
    "list_images",
    "list_left_out",
    "output_name",
    "picture_from_pil",
    "plan_jobs",
    "read_picture",
    "read_record",
    "restore_files",
    "restore_picture",
    "split_by_pixels",
    "stage_clock",
    "to_pixels",
    "to_tensor",
    "what_was_done",
    "write_picture",
]
