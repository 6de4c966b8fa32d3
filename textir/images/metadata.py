"""What a file says beside its pixels, and what each format may hold of it: colour profile, EXIF,
resolution, XMP and texts.

Metadata never decide whether a photo can be restored. What is odd or damaged is left out; what
describes how the bytes of the old file were stored is never copied into a new one.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction

from PIL import ExifTags, Image, PngImagePlugin

ICC_TAG, XMP_TAG = 34675, 700
DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
# Tags of the main directory that describe the picture (TIFF 6.0, EXIF 2.32, and those of Windows).
# All others say how the bytes of the old file are stored.
TEXTS = {
    "ImageDescription": 270,
    "Make": 271,
    "Model": 272,
    "Software": 305,
    "DateTime": 306,
    "Artist": 315,
    "HostComputer": 316,
    "Copyright": 33432,
}
RESOLUTION, RESOLUTION_UNIT = (282, 283), 296
NUMBERS = {RESOLUTION_UNIT: range(1, 4), 18246: range(6), 18249: range(101)}  # unit and ratings
DIMENSIONS = (40962, 40963)  # width and height in pixels, in the directory Exif
SENSOR_RESOLUTION = (41486, 41487)  # pixels across and down a unit of the sensor
PLACES = (37396, 41492)  # of the subject, in pixels
WINDOWS_TEXTS = range(40091, 40096)  # title, comment, author, keywords, subject in UTF-16
XMP_KEYWORD = "XML:com.adobe.xmp"
COMMENT = "Comment"
CENTIMETRE = 3
MAX_SEGMENT = 65_000  # bytes of a text or of XMP in a JPEG


def read_metadata(image: Image.Image) -> dict:
    """The fields of a `Picture` that hold metadata, from an opened Pillow image."""
    texts = {}
    for keyword, text in getattr(image, "text", {}).items():
        if keyword != XMP_KEYWORD:
            texts[keyword] = str(text)
    comment = image.info.get("comment")
    if image.format in ("JPEG", "MPO") and isinstance(comment, bytes):
        texts[COMMENT] = comment.decode("utf-8", "replace")
    return {
        "icc_profile": usable_profile(image.info.get("icc_profile")),
        "exif": upright_exif(image),
        "dpi": usable_resolution(image.info.get("dpi")),
        "xmp": upright_xmp(image.info.get("xmp")),
        "texts": texts,
    }


def read_tiff_metadata(page, exif: bytes | None = None) -> dict:
    """The same, from a page that tifffile has opened; `exif` is what Pillow read of it.

    Of several descriptions the first counts: tifffile puts one of its own behind that of the user.
    """

    def value_of(tag: int):
        return page.tags[tag].value if tag in page.tags else None

    block = Image.Exif()
    block.load(exif or b"")
    for tag in (*TEXTS.values(), *RESOLUTION, RESOLUTION_UNIT):
        value = value_of(tag)
        if tag in RESOLUTION and isinstance(value, tuple) and len(value) == 2 and value[1]:
            value = value[0] / value[1]
        add_tag(block, tag, value)
    unit = 2.54 if value_of(RESOLUTION_UNIT) == CENTIMETRE else 1
    resolution = [float(block.get(tag, math.nan)) * unit for tag in RESOLUTION]
    return {
        "icc_profile": usable_profile(value_of(ICC_TAG)),
        "exif": finished(block),
        "dpi": usable_resolution(resolution),
        "xmp": upright_xmp(value_of(XMP_TAG)),
    }


def usable_profile(value) -> bytes | None:
    """A colour profile, if it is bytes at all."""
    return value if isinstance(value, bytes) and value else None


def usable_resolution(value) -> tuple[float, float] | None:
    """Pixels an inch in both directions, if they are positive numbers."""
    try:
        across, down = (float(number) for number in value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    sensible = all(math.isfinite(number) and 0 < number < 1e6 for number in (across, down))
    return (across, down) if sensible else None


def upright_xmp(value) -> bytes | None:
    """XMP whose orientation is that of an upright picture."""
    value = value.encode() if isinstance(value, str) else value
    if not isinstance(value, bytes) or not value:
        return None
    return re.sub(rb"(tiff:Orientation(?:=[\"']|>))\d", rb"\g<1>1", value)


def upright_exif(image: Image.Image) -> bytes | None:
    """The EXIF block of an image with what describes the picture, and the orientation reset."""
    try:
        original = image.getexif()
    except Exception:  # on damaged bytes the parser raises nearly anything
        return None
    exif = Image.Exif()  # a copy: Pillow turns the image by the original
    exif.endian = original.endian
    for tag in original:
        add_tag(exif, tag, original.get(tag))
    for directory in DIRECTORIES:
        try:
            content = original.get_ifd(directory)
        except Exception:
            continue
        kept = {tag: value for tag, value in content.items() if can_write(directory, tag, value)}
        if kept:
            exif[directory] = kept
    return finished(exif)


def add_tag(exif: Image.Exif, tag: int, value) -> None:
    """Put a tag into the main directory if it describes the picture and its value is one."""
    if tag in TEXTS.values() and isinstance(value, str):
        if not value.startswith('{"shape"'):  # tifffile's own
            exif[tag] = value.replace("\0", " ").strip()
    elif tag in RESOLUTION and usable_resolution((value, value)):
        exif[tag] = float(value)
    elif tag in NUMBERS and isinstance(value, int) and value in NUMBERS[tag]:
        exif[tag] = value
    elif tag in WINDOWS_TEXTS and isinstance(value, bytes | tuple):
        try:
            exif[tag] = bytes(value)
        except (TypeError, ValueError):
            return


def can_write(directory: int, tag: int, value) -> bool:
    """Whether a tag of a sub-directory can be written again; tables of thumbnails are not kept."""
    if tag == ExifTags.IFD.Interop:
        return False
    trial = Image.Exif()
    trial[directory] = {tag: value}
    try:
        trial.tobytes()
    except Exception:
        return False
    return True


def finished(exif: Image.Exif) -> bytes | None:
    """The bytes of a block whose picture stands upright; nothing if it says nothing."""
    if not len(exif):
        return None
    exif[ExifTags.Base.Orientation] = 1
    return exif.tobytes()


# ---- a picture that has grown


def enlarged_metadata(picture, height: int, width: int) -> dict:
    """Resolution, EXIF and XMP of a picture that gets a new size, as fields of a `Picture`: what
    they say of its size is true of the new one, and on paper it measures what it did."""
    old_height, old_width = picture.pixels.shape[:2]
    scales = (width / old_width, height / old_height)
    dpi = picture.dpi and usable_resolution(old * by for old, by in zip(picture.dpi, scales))
    xmp = picture.xmp
    for names, side in (
        (rb"PixelXDimension|ImageWidth", width),
        (rb"PixelYDimension|ImageLength", height),
    ):
        if xmp is not None:
            xmp = re.sub(rb"((?:%b)(?:=[\"']|>))\d+" % names, rb"\g<1>%d" % side, xmp)
    return {"dpi": dpi, "exif": enlarged_exif(picture.exif, (width, height), scales), "xmp": xmp}


def enlarged_exif(
    block: bytes | None, size: tuple[int, int], scales: tuple[float, float]
) -> bytes | None:
    """An EXIF block with the width and height of a picture that has grown by `scales`."""
    if block is None:
        return None
    exif = Image.Exif()
    exif.load(block)
    details = exif.get_ifd(ExifTags.IFD.Exif)
    for tag, side in zip(DIMENSIONS, size):
        if tag in details:
            details[tag] = side
    for directory, tags in ((exif, RESOLUTION), (details, SENSOR_RESOLUTION)):
        for tag, by in zip(tags, scales):
            if tag in directory:
                directory[tag] = float(directory[tag]) * by
    for tag in PLACES:
        details.pop(tag, None)
    return exif.tobytes()


# ---- what a format may hold


def pillow_options(picture, kind: str) -> dict:
    """Arguments of `PIL.Image.Image.save` that carry the metadata of a picture into a format."""
    options = {}
    if picture.dpi and kind in ("JPEG", "PNG", "TIFF", "BMP"):
        options["dpi"] = picture.dpi
    if picture.icc_profile and kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF"):
        options["icc_profile"] = picture.icc_profile
    if picture.exif and kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF"):
        options["exif"] = picture.exif
    if picture.xmp and kind in ("WEBP", "AVIF"):
        options["xmp"] = picture.xmp
    if kind == "JPEG":
        comment = comment_of(picture)
        if comment and len(comment) < MAX_SEGMENT:
            options["comment"] = comment
        if picture.xmp and len(picture.xmp) < MAX_SEGMENT:
            options["xmp"] = picture.xmp
    if kind == "PNG":
        options["pnginfo"] = png_texts(picture)
    if kind == "TIFF":
        # Libtiff cannot write EXIF directories, and fails on arrays in tags that it does not know.
        options["compression"] = "raw" if needs_own_writer(picture.exif) else "tiff_deflate"
        if picture.xmp:
            block = Image.Exif()
            block.load(picture.exif or b"")
            block[XMP_TAG] = picture.xmp
            options["exif"] = block
    return options


def comment_of(picture) -> bytes:
    return picture.texts.get(COMMENT, picture.texts.get("Description", "")).encode()


def png_texts(picture) -> PngImagePlugin.PngInfo:
    """Texts and XMP as chunks of a PNG file."""
    chunks = PngImagePlugin.PngInfo()
    for keyword, text in picture.texts.items():
        try:
            keyword.encode("latin-1", "strict")
            chunks.add_itxt(keyword[:79], text)
        except UnicodeEncodeError:
            continue
    if picture.xmp:
        chunks.add_itxt(XMP_KEYWORD, picture.xmp.decode("utf-8", "replace"))
    return chunks


def needs_own_writer(exif: bytes | None) -> bool:
    block = Image.Exif()
    block.load(exif or b"")
    return any(tag in block for tag in (*DIRECTORIES, *WINDOWS_TEXTS))


def insert_png_chunks(png: bytes, picture) -> bytes:
    """Put profile, EXIF, resolution and texts behind the header of a PNG (PNG specification,
    section 11.3)."""
    header_end = 8 + 25  # signature, IHDR chunk
    return png[:header_end] + b"".join(png_chunks(picture)) + png[header_end:]


def png_chunks(picture) -> Iterator[bytes]:
    bodies = []
    if picture.icc_profile:
        bodies.append(b"iCCP" + b"ICC profile\0\0" + zlib.compress(picture.icc_profile))
    if picture.dpi:
        a_metre = [round(number / 0.0254) for number in picture.dpi]
        bodies.append(b"pHYs" + struct.pack(">IIB", *a_metre, 1))
    if picture.exif:
        bodies.append(b"eXIf" + picture.exif.removeprefix(b"Exif\0\0"))
    bodies += [kind + data for kind, data, *_ in png_texts(picture).chunks]
    for body in bodies:
        yield struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def round_number(number: float) -> float:
    """A resolution without the error that other units leave behind: 299.9994 -> 300."""
    return round(number, 2) if abs(number - round(number)) > 0.01 else round(number)


def tifffile_options(picture) -> dict:
    """Arguments of `tifffile.imwrite` that carry the metadata of a picture; EXIF directories find
    no place there."""
    block = Image.Exif()
    block.load(picture.exif or b"")
    texts = {}
    for tag in TEXTS.values():
        if tag in block:
            texts[tag] = block[tag].encode("ascii", "replace").decode()
    options = {
        "description": texts.pop(TEXTS["ImageDescription"], None),
        "software": texts.pop(TEXTS["Software"], False),
        "metadata": None,
        "extratags": [(tag, 2, 0, text, True) for tag, text in texts.items()],
    }
    if picture.dpi:
        options["resolution"] = tuple(map(Fraction, map(round_number, picture.dpi)))
        options["resolutionunit"] = "INCH"
    for tag, data in ((ICC_TAG, picture.icc_profile), (XMP_TAG, picture.xmp)):
        if data:
            options["extratags"].append((tag, 1 if tag == XMP_TAG else 7, len(data), data, True))
    return options
