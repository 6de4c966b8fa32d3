"""Pictures: files in and out without loss, one or many through a pipeline."""

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

__all__ = [
    "EXTENSIONS",
    "MAX_PIXELS",
    "Picture",
    "UnusableImageError",
    "encode_picture",
    "is_image",
    "list_images",
    "output_name",
    "picture_from_pil",
    "read_picture",
    "to_pixels",
    "to_tensor",
    "write_picture",
]
