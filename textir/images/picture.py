"""Image files in, image files out, with nothing lost on the way: size, orientation, alpha, depth,
and what `metadata.py` names.

Pillow reads and writes what it can; it has no 16-bit colour, so those PNG and TIFF files go through
imagecodecs and tifffile (of which the TIFF files lose their EXIF directories).
"""

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from textir.images.metadata import (
    insert_png_chunks,
    pillow_options,
    read_metadata,
    read_tiff_metadata,
    tifffile_options,
)
from textir.machine import writing

# What is written under a name of each kind, by Pillow's name; GIF and JPEG XL are read only.
KINDS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".tga": "TGA",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
}
EXTENSIONS = {*KINDS, ".gif", ".jxl"}
MAX_PIXELS = 100_000_000
MAX_REDUCTION = 8  # of a side, by bicubic interpolation alone
BITS_TAG = 258
PNG_LEVEL = 4  # a quarter of the time of level 6, for files that are 5 % larger
SAVE_OPTIONS: dict[str, dict] = {
    "PNG": {"compress_level": PNG_LEVEL},
    "JPEG": {"quality": 97, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},  # exact: also under transparent pixels
    "AVIF": {"quality": 97, "subsampling": "4:4:4"},
    "JPEG2000": {"irreversible": False},
}
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
JXL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


class UnusableImageError(ValueError):
    """A file is understood, but is not a picture that can be restored; the message names it and
    says why."""


class TooLargeImageError(UnusableImageError):
    """An image has more pixels than are taken.

    Attributes:
        pixels: how many it has.
    """

    def __init__(self, name: str, pixels: int, limit: int):
        super().__init__(
            f"{name} has more than {limit / 1e6:g} million pixels ({pixels / 1e6:.1f}); reduce it "
            "first."
        )
        self.pixels = pixels


@dataclass(frozen=True)
class Picture:
    """A decoded image and what has to survive its restoration.

    Attributes:
        pixels: `(H, W, 3)` float32 in [0, 1], upright (EXIF orientation applied); gray images
            repeat their channel.
        alpha: `(H, W)` float32 in [0, 1], or `None`.
        bits: depth of the file's channels: 8, 16, or 32 for floating point.
        is_gray: whether the file has a single colour channel.
        icc_profile: colour profile of the file, or `None`.
        exif: EXIF block of what describes the picture, with the orientation reset, or `None`.
        dpi: pixels an inch across and down, or `None`.
        xmp: XMP packet, or `None`.
        texts: text chunks of a PNG; the comment of a JPEG under `Comment`.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8
    is_gray: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    xmp: bytes | None = None
    texts: Mapping[str, str] = field(default_factory=dict)

    def with_pixels(self, pixels: np.ndarray) -> "Picture":
        """The same picture with other colours, of the same size."""
        if pixels.shape != self.pixels.shape:
            raise ValueError(f"`pixels` must be {self.pixels.shape}, got {pixels.shape}.")
        return replace(self, pixels=pixels)

    def tensor(self) -> torch.Tensor:
        """Its colours as networks take them, `(1, 3, H, W)` in [0, 1]."""
        return to_tensor(self.pixels)

    def with_tensor(self, image: torch.Tensor) -> "Picture":
        """The same picture with the colours of an image `(1, 3, H, W)` or `(3, H, W)` of its
        size."""
        return self.with_pixels(to_pixels(image))


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Pixels `(H, W, C)` -> `(1, C, H, W)`, with the same numbers."""
    return torch.from_numpy(pixels).movedim(-1, 0)[None]


def to_pixels(image: torch.Tensor, clip: bool = True) -> np.ndarray:
    """An image `(1, C, H, W)` or `(C, H, W)` -> float32 pixels `(H, W, C)`, clipped to [0, 1]."""
    single = image.detach().reshape(image.shape[-3:]).float()
    single = single.clamp(0, 1) if clip else single
    return np.ascontiguousarray(single.movedim(0, -1).cpu().numpy())


def resize(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with anti-aliasing, `(B, C, H, W)` in [0, 1] -> `(B, C, *size)` in [0, 1].

    Reductions by more than `MAX_REDUCTION` begin with means of squares: CUDA has no room for so
    wide a filter.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    factors = [side / wanted for side, wanted in zip(image.shape[-2:], size)]
    if max(factors) > MAX_REDUCTION:
        # The rest is left to the better filter.
        smaller = [min(side, 4 * wanted) for side, wanted in zip(image.shape[-2:], size)]
        image = F.interpolate(image, smaller, mode="area")
    return F.interpolate(image, tuple(size), mode="bicubic", antialias=True).clamp(0, 1)


def list_images(path: str | Path, recursive: bool = False) -> list[Path]:
    """Image files of a folder in sorted order (a file is a list of itself); hidden files are left
    out.

    Raises:
        ValueError: if `path` does not exist.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist.")
    found = path.rglob("*") if recursive else path.iterdir()
    return sorted(filter(is_image, found))


def is_image(path: Path) -> bool:
    """Whether a path is a file with the name of an image, and not a hidden one."""
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()


def read_picture(
    source: str | Path | bytes, name: str | None = None, max_pixels: int | None = None
) -> Picture:
    """Decode an image file.

    Args:
        source: path, or the bytes of a file.
        name: how messages call it; the path by default.
        max_pixels: more are refused before they are decoded; `MAX_PIXELS` by default.

    Raises:
        ValueError: if the file is empty, truncated, animated, too large or not an image; the
            message names it and says why.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "the image")
    limit = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}.") from error
    if not data:
        raise ValueError(f"{name} is empty (0 bytes).")
    try:
        return _decode(data, name, limit)
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not an image that can be read ({', '.join(sorted(EXTENSIONS))})."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} has more than {limit / 1e6:.0f} million pixels; reduce it first."
        ) from error
    except Exception as error:  # on damaged bytes decoders raise nearly anything
        raise ValueError(f"{name} is damaged or truncated: {error}.") from error


def _decode(data: bytes, name: str, limit: int) -> Picture:
    if data.startswith(JXL_SIGNATURES):
        return _decode_jxl(data, name, limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `limit` decides
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            if data.startswith(TIFF_SIGNATURES):  # such as floating-point colour
                return _decode_tiff(data, name, limit)
            raise
        if image.width * image.height > limit:
            raise TooLargeImageError(name, image.width * image.height, limit)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # a phone's JPEG with a preview behind the picture
            raise UnusableImageError(
                f"{name} has {frames} frames; save the one to be restored as a file of its own."
            )
        metadata = read_metadata(image)
        if image.format == "PNG" and data[24] == 16:
            array = imagecodecs.png_decode(data)
            return _from_array(array, name, _orientation(image), metadata)
        if image.format == "TIFF" and max(image.tag_v2.get(BITS_TAG, (1,))) > 8:
            return _decode_tiff(data, name, limit, metadata)  # Pillow reads 16-bit colour as 8-bit
        if image.format == "JPEG2000" and imagecodecs.JPEG2K.available:
            array = imagecodecs.jpeg2k_decode(data)
            if array.dtype == np.uint16 and array.ndim == 3:
                return _from_array(array, name, 1, metadata)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            array = np.asarray(image)
            array = array if image.mode == "F" else array.astype(np.uint16)
            return _from_array(array, name, 1, metadata)
        try:
            image.load()
        except (OSError, ValueError):
            if image.format == "TIFF":  # tifffile knows layouts that Pillow does not
                return _decode_tiff(data, name, limit, metadata)
            raise
    return _from_pillow(image, metadata)


def _decode_jxl(data: bytes, name: str, limit: int) -> Picture:
    height, width = jxl_size(data)
    if height * width > limit:
        raise TooLargeImageError(name, height * width, limit)
    array = imagecodecs.jpegxl_decode(data)
    if array.ndim > 3:
        raise UnusableImageError(f"{name} has {len(array)} frames; save one as a file of its own.")
    return _from_array(array, name)


def jxl_codestream(data: bytes) -> bytes:
    """The coded picture of a JPEG XL file, out of the boxes that may hold it (ISO/IEC 18181-2)."""
    if data.startswith(JXL_SIGNATURES[0]):
        return data
    place = 0
    while place + 8 <= len(data):
        size, kind, head = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[place + 8 : place + 16]), 16
        if kind in (b"jxlc", b"jxlp"):
            number = 4 if kind == b"jxlp" else 0  # of the part
            return data[place + head + number :]
        if size < head:
            break
        place += size
    raise ValueError("no codestream in its boxes")


def jxl_size(data: bytes) -> tuple[int, int]:
    """Height and width in the header of a JPEG XL file (ISO/IEC 18181-1, SizeHeader)."""
    bits = int.from_bytes(jxl_codestream(data)[2:18], "little")  # behind its signature

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def side(in_eights: int) -> int:
        return 8 * (take(5) + 1) if in_eights else take((9, 13, 18, 30)[take(2)]) + 1

    in_eights = take(1)
    height = side(in_eights)
    ratio = take(3)
    if not ratio:
        return height, side(in_eights)
    across, down = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height, height * across // down


def picture_from_pil(image: Image.Image) -> Picture:
    """A `Picture` of a Pillow image, upright; modes `I` and `I;16` hold 16-bit gray."""
    metadata = read_metadata(image)
    if image.mode.startswith("I"):
        gray = np.asarray(ImageOps.exif_transpose(image)).astype(np.float32) / 65535
        return Picture(np.repeat(gray[..., None], 3, axis=-1), None, 16, True, **metadata)
    return _from_pillow(image, metadata)


def _from_pillow(image: Image.Image, metadata: Mapping) -> Picture:
    image = ImageOps.exif_transpose(image)
    if image.mode == "CMYK":
        image = _cmyk_to_rgb(image, metadata["icc_profile"])
        metadata = {**metadata, "icc_profile": None}
    is_gray = image.mode in ("1", "L", "LA", "La")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    array = np.asarray(image.convert("RGBA" if has_alpha else "RGB"), dtype=np.float32) / 255
    alpha = array[..., 3] if has_alpha else None
    return Picture(np.ascontiguousarray(array[..., :3]), alpha, 8, is_gray, **metadata)


def _cmyk_to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is None:
        return image.convert("RGB")
    inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    screen = ImageCms.createProfile("sRGB")
    return ImageCms.profileToProfile(image, inks, screen, outputMode="RGB")


def _decode_tiff(data: bytes, name: str, limit: int, metadata: Mapping | None = None) -> Picture:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > 1:
            raise UnusableImageError(
                f"{name} has {len(file.pages)} pages; save the one to be restored as a file of its "
                "own."
            )
        page = file.pages[0]
        if page.imagewidth * page.imagelength > limit or page.size > 4 * limit:
            raise TooLargeImageError(name, page.imagewidth * page.imagelength, limit)
        array, photometric = page.asarray(), page.photometric
        if photometric == 6 and array.dtype == np.uint8:  # tifffile leaves YCbCr to the caller
            image = Image.fromarray(array, "YCbCr").convert("RGB")
            array, photometric = np.asarray(image), 2
        if photometric not in (0, 1, 2) or page.bitspersample not in (8, 16, 32, 64):
            kind = getattr(photometric, "name", photometric)
            raise UnusableImageError(
                f"{name} is a {page.bitspersample}-bit {kind} TIFF; convert it to 16-bit gray or "
                "RGB first."
            )
        metadata = read_tiff_metadata(page, (metadata or {}).get("exif"))
        orientation = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
        if page.planarconfig == 2 and array.ndim == 3:
            array = np.moveaxis(array, 0, -1)
        if photometric == 0 and array.dtype.kind == "u":  # white is zero
            array = np.iinfo(array.dtype).max - array
    return _from_array(array, name, orientation, metadata)


def _from_array(
    array: np.ndarray, name: str, orientation: int = 1, metadata: Mapping | None = None
) -> Picture:
    array = array[..., None] if array.ndim == 2 else array
    if array.dtype == np.uint8 or array.dtype == np.uint16:
        bits = 8 * array.dtype.itemsize
        array = array.astype(np.float32) / (2**bits - 1)
    elif array.dtype.kind == "f":
        bits, array = 32, array.astype(np.float32)
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise UnusableImageError(
                f"{name} holds floating-point values outside [0, 1]; scale them to that range "
                "first."
            )
    else:
        raise UnusableImageError(
            f"{name} stores {array.dtype} values; 8-bit, 16-bit and floating-point images can be "
            "read."
        )
    array = _transpose(array, orientation)
    channels = array.shape[-1]
    if channels not in (1, 2, 3, 4):
        raise UnusableImageError(
            f"{name} has {channels} channels; 1 (gray) to 4 (RGB and alpha) can be read."
        )
    alpha = array[..., -1] if channels in (2, 4) else None
    color = array[..., :3] if channels >= 3 else array[..., :1].repeat(3, axis=-1)
    return Picture(np.ascontiguousarray(color), alpha, bits, channels < 3, **(metadata or {}))


def _transpose(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn an array upright by its EXIF orientation (1 to 8)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def output_name(path: Path, picture: Picture) -> str:
    """The name under which a restored picture is written: the same, or `.png` (`.tif` for
    floating-point pixels) where the old format cannot hold the result."""
    kind = KINDS.get(path.suffix.lower(), "")
    shallow, opaque = picture.bits == 8, picture.alpha is None
    fits = {
        "JPEG": shallow and opaque,
        "WEBP": shallow,
        "AVIF": shallow,
        "BMP": shallow and opaque,
        "TGA": shallow,
        "JPEG2000": shallow,
        "PPM": shallow and opaque and picture.is_gray == (path.suffix.lower() == ".pgm"),
        "PNG": picture.bits <= 16,
        "TIFF": True,
    }
    if fits.get(kind, False):
        return path.name
    return path.stem + (".tif" if picture.bits == 32 else ".png")


def write_picture(path: str | Path, picture: Picture) -> Path:
    """Write a picture in the format of the file name; the file appears whole or not at all.

    JPEG is written at quality 97 without chroma subsampling, WebP lossless; PNG and TIFF keep 16
    bits.

    Raises:
        ValueError: if the format is not known or the folder cannot be written to.
    """
    path = Path(path)
    with writing(path) as temporary:
        temporary.write_bytes(encode_picture(picture, path.suffix.lower()))
    return path


def encode_picture(picture: Picture, suffix: str = ".png") -> bytes:
    """The bytes of an image file of the kind that `suffix` names."""
    channels = picture.pixels
    if picture.is_gray:
        # In double precision three equal numbers have their own mean.
        channels = picture.pixels.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)
    if picture.alpha is not None:
        channels = np.concatenate([channels, picture.alpha[..., None]], axis=-1)
    kind = KINDS.get(suffix)
    if kind is None:
        raise ValueError(f"Images cannot be written as {suffix!r}; use one of {', '.join(KINDS)}.")
    if kind == "TIFF" and picture.bits > 8:
        return _encode_tiff(channels, picture)
    if kind == "PNG" and picture.bits == 16:
        array = (channels.clip(0, 1) * 65535).round().astype(np.uint16)
        return insert_png_chunks(bytes(imagecodecs.png_encode(array, level=PNG_LEVEL)), picture)
    if picture.bits == 32:
        raise ValueError(f"{suffix} cannot hold floating-point pixels; write a .tif.")
    array = (channels.clip(0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    buffer = io.BytesIO()
    options = {**SAVE_OPTIONS.get(kind, {}), **pillow_options(picture, kind)}
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _encode_tiff(channels: np.ndarray, picture: Picture) -> bytes:
    channels = channels.clip(0, 1)
    if picture.bits == 16:
        channels = (channels * 65535).round().astype(np.uint16)
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        channels.squeeze(-1) if channels.shape[-1] == 1 else channels,
        photometric="minisblack" if picture.is_gray else "rgb",
        extrasamples=["unassalpha"] if picture.alpha is not None else None,
        compression="zlib",
        **tifffile_options(picture),
    )
    return buffer.getvalue()
