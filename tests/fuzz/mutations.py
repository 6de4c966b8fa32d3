"""Image files of every format that is read, and what happens to files on their way."""

import io
import random

import imagecodecs
import numpy as np
import tifffile
from PIL import Image, PngImagePlugin
from skimage import data

PHOTO = data.astronaut()[:48, :56]
DEEP = PHOTO.astype(np.uint16) * 257
WORDS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1")


def pillow(kind: str, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PHOTO).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def seeds() -> list[bytes]:
    """Sound files, with metadata where their format has any."""
    exif = Image.Exif()
    exif[271], exif[274], exif[282], exif[0x8769] = "camera", 6, 300.0, {37500: b"maker"}
    described = {"exif": exif.tobytes(), "dpi": (300, 300)}
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a title")
    texts.add_itxt("Ü", "é")
    printed = {"photometric": "rgb", "resolution": (300, 300), "description": "a photo"}
    return [
        pillow("PNG", pnginfo=texts, **described),
        pillow("PNG", "P"),
        imagecodecs.png_encode(DEEP),
        pillow("JPEG", comment=b"comment", xmp=b"<x/>", **described),
        pillow("JPEG", "CMYK"),
        pillow("WEBP", xmp=b"<x/>", exif=exif.tobytes()),
        pillow("AVIF"),
        pillow("BMP", dpi=(72, 72)),
        pillow("GIF"),
        pillow("TGA"),
        pillow("PPM"),
        pillow("JPEG2000"),
        imagecodecs.jpeg2k_encode(DEEP, codecformat="jp2"),
        imagecodecs.jpegxl_encode(PHOTO),
        pillow("TIFF", **described),
        pillow("TIFF", compression="tiff_lzw"),
        tiff(DEEP, **printed),
        tiff(DEEP[..., 0]),
        tiff((PHOTO / 255).astype(np.float32), photometric="rgb"),
        tiff(DEEP, photometric="rgb", compression="zlib", tile=(16, 16)),
    ]


def mutate(file: bytes, generator: random.Random) -> bytes:
    """A file cut short, with bytes changed, inserted or lost, or with a length that cannot be."""
    damaged = bytearray(file)
    place = generator.randrange(len(damaged))
    early = generator.randrange(min(len(damaged), 300))
    kind = generator.randrange(6)
    if kind == 0:
        del damaged[place:]
    elif kind == 1:
        for _ in range(generator.randint(1, 8)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
    elif kind == 2:
        damaged[early] = generator.choice((0, 1, 127, 128, 255))
    elif kind == 3:
        damaged[place:place] = generator.randbytes(generator.randint(1, 16))
    elif kind == 4:
        del damaged[place : place + generator.randint(1, 32)]
    else:
        damaged[early : early + 4] = generator.choice(WORDS)
    return bytes(damaged)
