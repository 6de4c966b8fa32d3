"""What a file says beside its pixels: kept where the format may hold it, and never a reason to lose
the photo."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, PngImagePlugin
from skimage import data

from textir.images.picture import MAX_PIXELS, encode_picture, jxl_size, read_picture

PIXELS = data.astronaut()[:64, :80]
DEEP = PIXELS.astype(np.uint16) * 257
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
    b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></x:xmpmeta>'
)


def saved(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, kind, **options)
    return buffer.getvalue()


def deep_tiff(**options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, DEEP, photometric="rgb", **options)
    return buffer.getvalue()


def written(source: bytes, suffix: str) -> Image.Image:
    image = Image.open(io.BytesIO(encode_picture(read_picture(source), suffix)))
    image.load()
    return image


def exif_with(**tags) -> Image.Exif:
    exif = Image.Exif()
    for name, value in tags.items():
        exif[getattr(ExifTags.Base, name)] = value
    return exif


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_resolution_stays(kind, suffix):
    assert written(saved(kind, dpi=(300, 200)), suffix).info["dpi"] == pytest.approx(
        (300, 200), 1e-3
    )


def test_resolution_stays_with_sixteen_bits():
    source = deep_tiff(resolution=(300, 300), resolutionunit="INCH")
    assert written(source, ".png").info["dpi"] == pytest.approx((300, 300), 1e-3)
    page = tifffile.TiffFile(io.BytesIO(encode_picture(read_picture(source), ".tif"))).pages[0]
    assert page.tags["XResolution"].value == (300, 1) and page.tags["ResolutionUnit"].value == 2


@pytest.mark.parametrize("options", [{}, {"metadata": None}], ids=str)
def test_texts_of_a_deep_tiff_stay(options):
    source = deep_tiff(description="negative 17", datetime="2020:01:02 03:04:05", **options)
    page = tifffile.TiffFile(io.BytesIO(encode_picture(read_picture(source), ".tif"))).pages[0]
    assert page.tags["ImageDescription"].value == "negative 17"
    assert page.tags["DateTime"].value == "2020:01:02 03:04:05"


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png", ".tif"])
@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_xmp_stays(kind, suffix):
    assert written(saved(kind, xmp=XMP), suffix).info["xmp"] == XMP


def test_xmp_of_a_turned_photo_says_that_it_is_upright():
    turned = XMP.replace(b"<rdf:RDF", b'<rdf:RDF tiff:Orientation="6"')
    assert b'tiff:Orientation="1"' in read_picture(saved("JPEG", xmp=turned)).xmp


@pytest.mark.parametrize("deep", [False, True])
def test_texts_of_a_png_stay(deep):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "Grandma 1950")
    texts.add_itxt("Author", "Łódź")
    source = saved("PNG", pnginfo=texts)
    if deep:
        whole = Image.open(io.BytesIO(source))
        picture = read_picture(source)
        assert whole.text["Title"] == "Grandma 1950"
        source = encode_picture(picture.__class__(picture.pixels, bits=16, texts=picture.texts))
    image = written(source, ".png")
    assert image.text["Title"] == "Grandma 1950" and image.text["Author"] == "Łódź"


def test_the_comment_of_a_jpeg_stays():
    assert written(saved("JPEG", comment=b"at the lake"), ".jpg").info["comment"] == b"at the lake"
    assert written(saved("JPEG", comment=b"at the lake"), ".png").text["Comment"] == "at the lake"


@pytest.mark.parametrize(
    "tags",
    [
        {"ImageWidth": 4000, "ImageLength": 3000},
        {"PhotometricInterpretation": 6},
        {"PlanarConfiguration": 2},
        {"BitsPerSample": (8, 8, 8)},
        {"Compression": 6},
        {"StripOffsets": 8, "StripByteCounts": 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", [".tif", ".jpg", ".png", ".webp"])
def test_tags_of_how_the_old_file_was_stored_do_not_reach_the_new_one(tags, suffix):
    source = saved("JPEG", exif=exif_with(**tags, Model="A camera"), quality=97)
    result = encode_picture(read_picture(source), suffix)
    again = read_picture(result)
    assert abs(again.pixels - read_picture(source).pixels).mean() < 0.01
    assert Image.open(io.BytesIO(result)).getexif()[ExifTags.Base.Model] == "A camera"


def test_rationals_where_none_belong_do_not_crash_the_writer():
    entry = struct.pack("<HHII", 42034, 5, 4, 26) + bytes(4)
    numbers = struct.pack("<8I", 24, 1, 70, 1, 28, 10, 28, 10)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + numbers
    assert read_picture(encode_picture(read_picture(saved("JPEG", exif=exif)), ".tif"))


@pytest.mark.parametrize("tag", [(34675, "H", 1, 7, True), (700, "H", 1, 7, True)])
def test_a_tag_of_the_wrong_kind_does_not_lose_the_photo(tag):
    picture = read_picture(deep_tiff(extratags=[tag]))
    assert picture.icc_profile is None
    for suffix in (".tif", ".png"):
        np.testing.assert_array_equal(
            read_picture(encode_picture(picture, suffix)).pixels, picture.pixels
        )


@pytest.mark.parametrize("resolution", [(0, 0), (1, 0)])
def test_a_resolution_that_is_no_number_does_not_lose_the_photo(resolution):
    source = saved("TIFF", compression="raw")
    body = bytearray(saved("TIFF", dpi=(77, 77)))
    body = body.replace(struct.pack("<II", 77, 1), struct.pack("<II", *resolution))
    assert bytes(body) != source
    picture = read_picture(bytes(body))
    assert picture.dpi is None
    assert read_picture(encode_picture(picture, ".tif")).pixels.shape == (64, 80, 3)


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "TGA"])
def test_other_formats_are_read_and_written(kind):
    suffix = {"AVIF": ".avif", "JPEG2000": ".jp2", "TGA": ".tga"}[kind]
    picture = read_picture(saved(kind))
    again = read_picture(encode_picture(picture, suffix))
    assert abs(again.pixels - picture.pixels).mean() < 0.01


def test_jpeg_xl_is_read():
    picture = read_picture(imagecodecs.jpegxl_encode(PIXELS, lossless=True))
    np.testing.assert_array_equal((picture.pixels * 255).round(), PIXELS)


@pytest.mark.parametrize("size", [(64, 80), (8, 8), (33, 700), (300, 400), (1080, 1920), (520, 3)])
@pytest.mark.parametrize("boxes", [False, True])
def test_the_size_of_a_jpeg_xl_is_read_from_its_header(size, boxes):
    pixels = np.zeros((*size, 3), np.uint8)
    data = imagecodecs.jpegxl_encode(pixels, lossless=True, usecontainer=boxes)
    assert jxl_size(data) == size
    with pytest.raises(ValueError, match="more than"):
        read_picture(data, max_pixels=size[0] * size[1] - 1)
    assert read_picture(data).pixels.shape[:2] == size


def test_sixteen_bits_of_jpeg_2000_are_read():
    picture = read_picture(imagecodecs.jpeg2k_encode(DEEP, level=0, codecformat="jp2"))
    assert picture.bits == 16
    np.testing.assert_array_equal((picture.pixels * 65535).round(), DEEP)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_number_of_pixels_is_asked_of_the_header(kind):
    with pytest.raises(ValueError, match=r"more than 0\.005119 million pixels"):
        read_picture(saved(kind), max_pixels=64 * 80 - 1)
    assert read_picture(saved(kind), max_pixels=64 * 80).pixels.shape == (64, 80, 3)
    assert MAX_PIXELS == 100_000_000
