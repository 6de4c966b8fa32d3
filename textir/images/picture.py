"""Image files in, image files out, with nothing lost on the way: size, orientation, alpha, ICC
profile, EXIF, 16-bit depth.

Pillow reads and writes what it can; it has no 16-bit colour, so those PNG and TIFF files go through
imagecodecs and tifffile (of which the TIFF files lose their EXIF block).
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from textir.machine import writing

EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
MAX_PIXELS = 100_000_000
MAX_REDUCTION = 8  # of a side, by bicubic interpolation alone
BITS_TAG, ICC_TAG = 258, 34675
DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# What a TIFF file's tags say of the picture (description, camera, resolution, author, ...) and not
# of how its bytes are stored.
DESCRIPTIVE_TAGS = {270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 33432}


class UnusableImageError(ValueError):
    """A file is understood, but is not a picture that can be restored; the message names it and
    says why."""


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
        exif: EXIF block with the orientation reset, or `None`.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8
    is_gray: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None

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


def read_picture(source: str | Path | bytes, name: str | None = None) -> Picture:
    """Decode an image file.

    Args:
        source: path, or the bytes of a file.
        name: how messages call it; the path by default.

    Raises:
        ValueError: if the file is empty, truncated, animated, too large or not an image; the
            message names it and says why.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "the image")
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}.") from error
    if not data:
        raise ValueError(f"{name} is empty (0 bytes).")
    try:
        return _decode(data, name)
    except UnusableImageError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is not an image that can be read ({', '.join(sorted(EXTENSIONS))})."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} has more than {MAX_PIXELS / 1e6:.0f} million pixels; reduce it first."
        ) from error
    except Exception as error:  # on damaged bytes decoders raise nearly anything
        raise ValueError(f"{name} is damaged or truncated: {error}.") from error


def _decode(data: bytes, name: str) -> Picture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            if data[:4] in (
                b"II*\0",
                b"MM\0*",
                b"II+\0",
                b"MM\0+",
            ):  # such as floating-point colour, which Pillow cannot open
                return _decode_tiff(data, name)
            raise
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if (
            getattr(image, "n_frames", 1) > 1 and image.format != "MPO"
        ):  # a phone's JPEG with a preview behind the picture
            raise UnusableImageError(
                f"{name} has {image.n_frames} frames; save the one to be restored as a file of its "
                "own."
            )
        if image.format == "PNG" and data[24] == 16:
            array = imagecodecs.png_decode(data)
            return _from_array(
                array,
                name,
                image.info.get("icc_profile"),
                _upright_exif(image),
                _orientation(image),
            )
        if (
            image.format == "TIFF" and max(image.tag_v2.get(BITS_TAG, (1,))) > 8
        ):  # Pillow reads 16-bit colour as 8-bit
            return _decode_tiff(data, name)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            array = np.asarray(image)
            return _from_array(array.astype(np.uint16) if image.mode != "F" else array, name)
        image.load()
    return _from_pillow(image)


def picture_from_pil(image: Image.Image) -> Picture:
    """A `Picture` of a Pillow image, upright; modes `I` and `I;16` hold 16-bit gray."""
    if image.mode.startswith("I"):
        gray = np.asarray(ImageOps.exif_transpose(image)).astype(np.float32) / 65535
        return Picture(np.repeat(gray[..., None], 3, axis=-1), bits=16, is_gray=True)
    return _from_pillow(image)


def _from_pillow(image: Image.Image) -> Picture:
    profile, exif = image.info.get("icc_profile"), _upright_exif(image)
    image = ImageOps.exif_transpose(image)
    if image.mode == "CMYK":
        image, profile = _cmyk_to_rgb(image, profile), None
    is_gray = image.mode in ("1", "L", "LA", "La")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    array = np.asarray(image.convert("RGBA" if has_alpha else "RGB"), dtype=np.float32) / 255
    alpha = array[..., 3] if has_alpha else None
    return Picture(np.ascontiguousarray(array[..., :3]), alpha, 8, is_gray, profile, exif)


def _cmyk_to_rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is None:
        return image.convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.profileToProfile(
        image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )


def _decode_tiff(data: bytes, name: str) -> Picture:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > 1:
            raise UnusableImageError(
                f"{name} has {len(file.pages)} pages; save the one to be restored as a file of its "
                "own."
            )
        page = file.pages[0]
        if page.imagewidth * page.imagelength > MAX_PIXELS or page.size > 4 * MAX_PIXELS:
            raise Image.DecompressionBombError
        if page.photometric not in (0, 1, 2) or page.bitspersample not in (8, 16, 32, 64):
            kind = getattr(page.photometric, "name", page.photometric)
            raise UnusableImageError(
                f"{name} is a {page.bitspersample}-bit {kind} TIFF; convert it to 16-bit gray or "
                "RGB first."
            )
        profile = page.tags[ICC_TAG].value if ICC_TAG in page.tags else None
        orientation = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
        array = page.asarray()
        if page.planarconfig == 2 and array.ndim == 3:
            array = np.moveaxis(array, 0, -1)
        if page.photometric == 0 and array.dtype.kind == "u":  # white is zero
            array = np.iinfo(array.dtype).max - array
    return _from_array(array, name, profile, None, orientation)


def _from_array(
    array: np.ndarray,
    name: str,
    profile: bytes | None = None,
    exif: bytes | None = None,
    orientation: int = 1,
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
    return Picture(np.ascontiguousarray(color), alpha, bits, channels < 3, profile, exif)


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


def _upright_exif(image: Image.Image) -> bytes | None:
    original = image.getexif()
    exif = Image.Exif()  # a copy: Pillow turns the image by the original
    exif.endian = original.endian
    for tag in original:
        if tag not in DIRECTORIES and (image.format != "TIFF" or tag in DESCRIPTIVE_TAGS):
            exif[tag] = original[tag]
    for directory in DIRECTORIES:
        if content := original.get_ifd(directory):
            exif[directory] = {
                tag: value for tag, value in content.items() if tag != ExifTags.IFD.Interop
            }
    if not len(exif):
        return None
    exif[ExifTags.Base.Orientation] = 1
    return exif.tobytes()


def output_name(path: Path, picture: Picture) -> str:
    """The name under which a restored picture is written: the same, or `.png` where the old format
    cannot hold the result."""
    suffix = path.suffix.lower()
    fits = {
        ".jpg": picture.alpha is None and picture.bits == 8,
        ".jpeg": picture.alpha is None and picture.bits == 8,
        ".webp": picture.bits == 8,
        ".bmp": picture.bits == 8 and picture.alpha is None,
        ".ppm": picture.bits == 8 and picture.alpha is None and not picture.is_gray,
        ".pgm": picture.bits == 8 and picture.alpha is None and picture.is_gray,
        ".png": picture.bits <= 16,
        ".tif": True,
        ".tiff": True,
    }
    if fits.get(suffix, False):
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
        channels = picture.pixels.mean(-1, keepdims=True)
    if picture.alpha is not None:
        channels = np.concatenate([channels, picture.alpha[..., None]], axis=-1)
    if suffix in (".tif", ".tiff") and picture.bits > 8:
        return _encode_tiff(channels, picture)
    if suffix == ".png" and picture.bits == 16:
        array = (channels.clip(0, 1) * 65535).round().astype(np.uint16)
        return _insert_metadata(imagecodecs.png_encode(array), picture)
    if picture.bits == 32:
        raise ValueError(f"{suffix} cannot hold floating-point pixels; write a .tif.")
    array = (channels.clip(0, 1) * 255).round().astype(np.uint8)
    image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    # Libtiff cannot write EXIF directories.
    compression = "raw" if _has_directories(picture.exif) else "tiff_deflate"
    options = {
        ".jpg": {"format": "JPEG", "quality": 97, "subsampling": 0},
        ".jpeg": {"format": "JPEG", "quality": 97, "subsampling": 0},
        ".png": {"format": "PNG"},
        # Exact: also under transparent pixels.
        ".webp": {
            "format": "WEBP",
            "lossless": True,
            "exact": True,
        },
        ".bmp": {"format": "BMP"},
        ".ppm": {"format": "PPM"},
        ".pgm": {"format": "PPM"},
        ".tif": {"format": "TIFF", "compression": compression},
        ".tiff": {"format": "TIFF", "compression": compression},
    }
    if suffix not in options:
        raise ValueError(
            f"Images cannot be written as {suffix!r}; use one of {', '.join(options)}."
        )
    extra = {"icc_profile": picture.icc_profile, "exif": picture.exif}
    buffer = io.BytesIO()
    image.save(buffer, **options[suffix], **{key: value for key, value in extra.items() if value})
    return buffer.getvalue()


def _encode_tiff(channels: np.ndarray, picture: Picture) -> bytes:
    channels = channels.clip(0, 1)
    if picture.bits == 16:
        channels = (channels * 65535).round().astype(np.uint16)
    profile = picture.icc_profile
    tags = [(ICC_TAG, "B", len(profile), profile, True)] if profile else []
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        channels.squeeze(-1) if channels.shape[-1] == 1 else channels,
        photometric="minisblack" if picture.is_gray else "rgb",
        extrasamples=["unassalpha"] if picture.alpha is not None else None,
        compression="zlib",
        extratags=tags,
    )
    return buffer.getvalue()


def _has_directories(exif: bytes | None) -> bool:
    block = Image.Exif()
    block.load(exif or b"")
    return any(tag in block for tag in DIRECTORIES)


def _insert_metadata(png: bytes, picture: Picture) -> bytes:
    """Put iCCP and eXIf chunks behind the header of a PNG (PNG specification, sections 11.3.2.3 and
    11.3.4.5)."""
    bodies = []
    if picture.icc_profile:
        bodies.append(b"iCCP" + b"ICC profile\0\0" + zlib.compress(picture.icc_profile))
    if picture.exif:
        bodies.append(b"eXIf" + picture.exif.removeprefix(b"Exif\0\0"))
    chunks = [
        struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        for body in bodies
    ]
    header_end = 8 + 25  # signature, IHDR chunk
    return png[:header_end] + b"".join(chunks) + png[header_end:]
