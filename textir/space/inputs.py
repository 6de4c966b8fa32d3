"""Photos that visitors send: what is taken, and what the restored file is called."""

import os
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from textir.images.picture import (
    Picture,
    TooLargeImageError,
    UnusableImageError,
    output_name,
    read_picture,
    resize,
    to_pixels,
    to_tensor,
)
from textir.models.edit_processor import is_gray

MAX_PIXELS = int(os.environ.get("TEXTIR_MAX_PIXELS", 16_000_000))
# Larger photos are restored as a reduced copy unless the full size is asked for.
FAST_PIXELS = int(os.environ.get("TEXTIR_FAST_PIXELS", 2_000_000))
MAX_SIDE = 20_000
MAX_FILES = 20


class NoPhotoError(ValueError):
    """Something is to be done to a photo, and there is none."""


def read_upload(path: str | Path | None) -> Picture:
    """Read an uploaded photo.

    Raises:
        ValueError: if there is none, it cannot be read or it is too large; the message says why.
    """
    if path is None:
        raise NoPhotoError("Upload a photo first, or choose an example.")
    try:
        picture = read_picture(path, name="The photo", max_pixels=MAX_PIXELS)
    except TooLargeImageError as error:
        raise UnusableImageError(
            f"The photo has {error.pixels / 1e6:.1f} million pixels; at most "
            f"{MAX_PIXELS / 1e6:g} are taken here."
        ) from None
    height, width = picture.pixels.shape[:2]
    if max(height, width) > MAX_SIDE:
        raise ValueError(
            f"The photo is {width} x {height} pixels; sides of at most {MAX_SIDE} are taken here."
        )
    return picture


def reduced_size(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the reduced copy of a photo; small ones keep theirs."""
    height, width = size
    factor = min((FAST_PIXELS / (height * width)) ** 0.5, 1.0)
    return max(int(height * factor), 1), max(int(width * factor), 1)


def reduced(picture: Picture) -> Picture:
    """A photo of at most `FAST_PIXELS` pixels."""
    size = reduced_size(picture.pixels.shape[:2])
    if size == picture.pixels.shape[:2]:
        return picture
    alpha = picture.alpha
    if alpha is not None:
        alpha = to_pixels(resize(to_tensor(alpha[..., None]), size))[..., 0]
    return replace(picture, pixels=to_pixels(resize(picture.tensor(), size)), alpha=alpha)


class Facts(NamedTuple):
    """What the page needs to know of a photo before anything is done to it."""

    height: int
    width: int
    is_gray: bool


@lru_cache(maxsize=64)
def look_at(path: str) -> Facts:
    """Size of an uploaded photo, and whether it lacks colours; files never change their content.

    Raises:
        ValueError: as `read_upload`.
    """
    pixels = read_upload(path).pixels
    return Facts(*pixels.shape[:2], is_gray(pixels))


def facts_of(path: str | None) -> Facts | None:
    """What is known of a photo; `None` where there is none that can be used."""
    try:
        return look_at(path) if path else None
    except ValueError:  # a run will tell
        return None


def check_number(files: list[str] | None) -> None:
    """Make sure that there are photos, and not too many.

    Raises:
        ValueError: if not.
    """
    if not files:
        raise NoPhotoError("Upload some photos first.")
    if len(files) > MAX_FILES:
        raise ValueError(f"{len(files)} files were sent; at most {MAX_FILES} are taken at a time.")


def restored_name(source: str | Path, picture: Picture, word: str = "restored") -> str:
    """The name of a restored photo: PNG, or TIFF for floating point."""
    suffix = Path(output_name(Path(source).with_suffix(".png"), picture)).suffix
    return f"{Path(source).stem}-{word}{suffix}"


def size_of(picture: Picture) -> str:
    """Width and height as words."""
    height, width = picture.pixels.shape[:2]
    return f"{width} x {height}"
