"""Image files come back with all that they held, and files that cannot be used are named with the
reason."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms

from textir.images import picture as images
from textir.images.metadata import ICC_TAG
from textir.images.picture import (
    Picture,
    encode_picture,
    list_images,
    output_name,
    picture_from_pil,
    read_picture,
    write_picture,
)
from textir.machine import writing

HEIGHT, WIDTH = 16, 24
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKE, DATE_TIME_ORIGINAL, LATITUDE_REF = (
    ExifTags.Base.Make,
    ExifTags.Base.DateTimeOriginal,
    ExifTags.GPS.GPSLatitudeRef,
)


def values(channels: int, dtype=np.uint8, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    array = np.random.default_rng(channels).integers(
        0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True
    )
    return array.squeeze(-1) if channels == 1 else array


def photo(mode: str = "RGB") -> Image.Image:
    """A Pillow image of random pixels."""
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}
    return (
        Image.fromarray(values(channels[mode]))
        if mode in channels
        else Image.fromarray(values(3)).convert(mode)
    )


def save(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, photometric: str = "rgb", **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, photometric=photometric, metadata=None, **options)
    return buffer.getvalue()


def exif_block(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[MAKE] = "A camera"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.IFD.Exif] = {DATE_TIME_ORIGINAL: "2024:02:29 12:00:00"}
    exif[ExifTags.IFD.GPSInfo] = {LATITUDE_REF: "N"}
    return exif


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, bits: int = 8, interlaced: bool = False) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + png_chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, interlaced)
    )


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG file with one more chunk behind its header."""
    return png[:33] + png_chunk(kind, body) + png[33:]


def interlaced_png(array: np.ndarray) -> bytes:
    """A 16-bit RGB PNG in the seven passes of Adam7."""
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    rows = [
        b"\0" + row.astype(">u2").tobytes()
        for top, left, down, right in passes
        for row in array[top::down, left::right]
        if row.size
    ]
    header = png_header(array.shape[1], array.shape[0], 16, interlaced=True)
    return header + png_chunk(b"IDAT", zlib.compress(b"".join(rows))) + png_chunk(b"IEND", b"")


def cmyk_profile() -> bytes:
    """An ICC profile under which unprinted paper is white and every ink alone is the same middle
    gray (Lab 50, 0, 0)."""
    inks = np.indices((2, 2, 2, 2)).sum(0).ravel()
    lightness = np.choose(inks.clip(max=2), [255, 128, 0])
    clut = np.stack([lightness, np.full(16, 128), np.full(16, 128)], axis=-1).astype(np.uint8)
    ramp = bytes(range(256))
    identity = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + clut.tobytes() + ramp * 3
    lut += b"\0" * (-len(lut) % 4)
    tags = struct.pack(">I4sII", 1, b"A2B0", 144, len(lut))
    header = struct.pack(">I4sI4s4s4s", 144 + len(lut), b"", 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += (
        struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
        + b"acsp"
        + b"\0" * 28
        + struct.pack(">3i", 63190, 65536, 54061)
    )
    return header.ljust(128, b"\0") + tags + lut


# ---- nothing is lost


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_comes_back_with_every_channel_and_bit(channels, dtype):
    array = values(channels, dtype)
    picture = read_picture(imagecodecs.png_encode(array))
    assert picture.pixels.shape == (HEIGHT, WIDTH, 3) and picture.pixels.dtype == np.float32
    assert (picture.bits, picture.is_gray) == (array.itemsize * 8, channels < 3)
    assert (picture.alpha is not None) == (channels in (2, 4))
    again = imagecodecs.png_decode(encode_picture(picture, ".png"))
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": 2, "byteorder": ">"},
        {"tile": (16, 16)},
        {"bigtiff": True},
    ],
    ids=["plain", "lzw", "lzw big-endian", "tiled", "bigtiff"],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_tiff_comes_back_with_every_channel_and_bit(channels, dtype, layout):
    array = values(channels, dtype)
    color = {"photometric": "minisblack" if channels < 3 else "rgb", "planarconfig": "contig"}
    extra = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    picture = read_picture(tiff(array, **color, **extra, **layout))
    assert (picture.bits, picture.is_gray) == (array.itemsize * 8, channels < 3)
    with tifffile.TiffFile(io.BytesIO(encode_picture(picture, ".tif"))) as written:
        again, extra = written.asarray(), written.pages[0].extrasamples
    assert again.dtype == dtype
    np.testing.assert_array_equal(again, array)
    # 2: alpha that is not multiplied into the colours.
    assert extra == ((2,) if channels in (2, 4) else ())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_with_separate_planes_comes_back_interleaved(dtype):
    array = values(3, dtype)
    planes = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    again = encode_picture(
        read_picture(tiff(planes, planarconfig="separate", compression="lzw")), ".tif"
    )
    np.testing.assert_array_equal(tifffile.imread(io.BytesIO(again)), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_in_which_white_is_zero_is_read_as_a_positive(dtype):
    array = values(1, dtype)
    picture = read_picture(tiff(array, photometric="miniswhite"))
    largest = np.iinfo(dtype).max
    np.testing.assert_allclose(picture.pixels[..., 0], (largest - array) / largest, atol=1e-6)


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)], ids=["gray", "colour"])
def test_floating_point_tiff_keeps_its_values(shape):
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    picture = read_picture(
        tiff(array, photometric="rgb" if len(shape) == 3 else "minisblack", compression="zlib")
    )
    assert picture.bits == 32
    again = tifffile.imread(io.BytesIO(encode_picture(picture, ".tif")))
    assert again.dtype == np.float32
    # Gray goes through a mean of three equal channels.
    np.testing.assert_allclose(again, array, atol=1e-7)


def test_what_is_written_as_floating_point_can_be_read_again():
    picture = Picture(np.float32([[[-0.5, 0.5, 1.5]] * WIDTH] * HEIGHT), bits=32)
    np.testing.assert_array_equal(
        read_picture(encode_picture(picture, ".tif")).pixels[0, 0], [0, 0.5, 1]
    )


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_floating_point_values_outside_the_range_are_refused(value):
    array = np.full((HEIGHT, WIDTH, 3), 0.5, np.float32)
    array[3, 4, 1] = value
    with pytest.raises(
        ValueError, match=r"^photo.tif holds floating-point values outside \[0, 1\]; scale them"
    ):
        read_picture(tiff(array), "photo.tif")


@pytest.mark.parametrize("suffix", [".webp", ".bmp", ".ppm"])
def test_other_lossless_formats_keep_eight_bit_colour(suffix):
    picture = picture_from_pil(photo())
    np.testing.assert_array_equal(
        read_picture(encode_picture(picture, suffix)).pixels, picture.pixels
    )


def test_pgm_keeps_gray():
    picture = read_picture(encode_picture(picture_from_pil(photo("L")), ".pgm"))
    assert picture.is_gray
    np.testing.assert_array_equal(picture.pixels, picture_from_pil(photo("L")).pixels)


def test_webp_keeps_colours_under_transparent_pixels():
    array = values(4)
    array[..., 3] = 0
    picture = picture_from_pil(Image.fromarray(array))
    np.testing.assert_array_equal(
        read_picture(encode_picture(picture, ".webp")).pixels, picture.pixels
    )


def test_jpeg_is_written_close_to_the_pixels_and_without_chroma_subsampling():
    array = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    array[:, ::2] = 255, 0, 0
    array[:, 1::2] = 0, 0, 255
    again = read_picture(encode_picture(picture_from_pil(Image.fromarray(array)), ".jpg"))
    assert np.abs(again.pixels * 255 - array).mean() < 8


# ---- orientation, EXIF, colour profile

STORED = {  # how an upright picture lies in a file of each EXIF orientation
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def oriented_file(kind: str, stored: np.ndarray, orientation: int) -> bytes:
    exif = exif_block(orientation)
    stored = np.ascontiguousarray(stored)
    if kind == "16-bit PNG":
        return with_chunk(
            imagecodecs.png_encode(stored.astype(np.uint16) * 257), b"eXIf", exif.tobytes()[6:]
        )
    if kind == "16-bit TIFF":
        return tiff(stored.astype(np.uint16) * 257, extratags=[(274, "H", 1, orientation, True)])
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    return save(Image.fromarray(stored), kind, exif=exif.tobytes(), **options.get(kind, {}))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "16-bit PNG", "16-bit TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_turned_upright(kind, orientation):
    upright = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    upright[: HEIGHT // 2, : WIDTH // 2] = 200, 40, 40
    upright[: HEIGHT // 2, WIDTH // 2 :] = 40, 200, 40
    upright[HEIGHT // 2 :, : WIDTH // 2] = 40, 40, 200
    picture = read_picture(oriented_file(kind, STORED[orientation](upright), orientation))
    np.testing.assert_allclose(picture.pixels, upright / 255, atol=0.03 if kind == "JPEG" else 1e-6)


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (kind, suffix)
        for kind in ("JPEG", "PNG", "WEBP", "TIFF")
        for suffix in (".jpg", ".png", ".webp", ".tif")
    ]
    + [("16-bit PNG", ".png")],
)
def test_exif_stays_with_the_orientation_reset(kind, suffix):
    picture = read_picture(oriented_file(kind, values(3), 6))
    written = Image.open(io.BytesIO(encode_picture(picture, suffix)))
    exif = written.getexif()
    assert written.size == (HEIGHT, WIDTH)
    assert exif[ExifTags.Base.Orientation] == 1 and exif[MAKE] == "A camera"
    assert exif.get_ifd(ExifTags.IFD.Exif)[DATE_TIME_ORIGINAL] == "2024:02:29 12:00:00"
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[LATITUDE_REF] == "N"


def test_a_tiff_of_its_own_storage_leaves_no_trace_of_it_in_a_jpeg():
    data = tiff(
        values(3),
        tile=(16, 16),
        compression="lzw",
        predictor=2,
        extratags=[(271, "s", 8, "A camera", True)],
    )
    exif = Image.open(io.BytesIO(encode_picture(read_picture(data), ".jpg"))).getexif()
    assert exif[MAKE] == "A camera"
    assert not {256, 257, 259, 317, 322, 323, 324, 325} & set(exif)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colour_profile_stays(kind, suffix):
    picture = read_picture(save(photo(), kind, icc_profile=SRGB))
    assert Image.open(io.BytesIO(encode_picture(picture, suffix))).info["icc_profile"] == SRGB


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_colour_profile_stays_with_sixteen_bits(kind, suffix):
    array = values(3, np.uint16)
    if kind == "PNG":
        data = with_chunk(imagecodecs.png_encode(array), b"iCCP", b"sRGB\0\0" + zlib.compress(SRGB))
    else:
        data = tiff(array, extratags=[(ICC_TAG, "B", len(SRGB), SRGB, True)])
    picture = read_picture(encode_picture(read_picture(data), suffix))
    assert picture.icc_profile == SRGB
    np.testing.assert_array_equal((picture.pixels * 65535).round(), array)


# ---- modes that Pillow has and a restorer has not


@pytest.mark.parametrize(
    "transparency",
    [None, 7, bytes(range(256))],
    ids=["opaque", "one entry", "alpha for each entry"],
)
def test_palette_becomes_colour_and_alpha(transparency):
    indices = photo("P")
    options = {} if transparency is None else {"transparency": transparency}
    picture = read_picture(save(indices, "PNG", **options))
    palette = np.float32(indices.getpalette("RGB")).reshape(-1, 3) / 255
    np.testing.assert_allclose(picture.pixels, palette[np.asarray(indices)], atol=1e-6)
    if transparency is None:
        assert picture.alpha is None
    else:
        expected = np.where(np.arange(256) == 7, 0, 255) if transparency == 7 else np.arange(256)
        np.testing.assert_allclose(picture.alpha * 255, expected[np.asarray(indices)], atol=1e-4)


def test_a_still_gif_is_read_as_colour():
    image = photo("P")
    picture = read_picture(save(image, "GIF"))
    np.testing.assert_array_equal(picture.pixels, picture_from_pil(image.convert("RGB")).pixels)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_without_profile_becomes_rgb(kind):
    image = Image.new("CMYK", (WIDTH, HEIGHT), (0, 200, 100, 20))
    picture = read_picture(save(image, kind))
    np.testing.assert_allclose(picture.pixels, np.asarray(image.convert("RGB")) / 255, atol=0.02)


def test_cmyk_is_converted_by_its_profile_and_leaves_it_behind():
    image = Image.new("CMYK", (WIDTH, HEIGHT), (255, 0, 0, 0))
    picture = read_picture(save(image, "TIFF", icc_profile=cmyk_profile()))
    # Lab 50 in sRGB; without the profile it is cyan.
    np.testing.assert_allclose(picture.pixels, 119 / 255, atol=0.02)
    assert picture.icc_profile is None


@pytest.mark.parametrize("profile", [b"not a profile" * 20, SRGB], ids=["damaged", "of RGB"])
def test_cmyk_with_a_profile_that_does_not_fit_is_refused(profile):
    data = save(photo("CMYK"), "JPEG", icc_profile=profile)
    with pytest.raises(ValueError, match=r"^photo.jpg is damaged or truncated: cannot"):
        read_picture(data, "photo.jpg")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_gray_with_alpha_stays_so(suffix):
    picture = read_picture(encode_picture(read_picture(save(photo("LA"), "PNG")), suffix))
    assert picture.is_gray
    np.testing.assert_array_equal((picture.pixels[..., 0] * 255).round(), values(2)[..., 0])
    np.testing.assert_array_equal((picture.alpha * 255).round(), values(2)[..., 1])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_one_bit_images_become_gray(kind):
    image = photo("1")
    picture = read_picture(save(image, kind))
    assert picture.is_gray and picture.bits == 8
    np.testing.assert_array_equal(picture.pixels[..., 1], np.asarray(image))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_gray_of_pillow_keeps_its_bits(kind):
    array = values(1, np.uint16)
    picture = read_picture(save(Image.fromarray(array), kind))
    assert (picture.bits, picture.is_gray) == (16, True)
    np.testing.assert_array_equal((picture.pixels[..., 0] * 65535).round(), array)


def test_interlaced_sixteen_bit_png_is_read():
    array = values(3, np.uint16, 19, 29)
    picture = read_picture(interlaced_png(array))
    assert picture.bits == 16
    np.testing.assert_array_equal((picture.pixels * 65535).round(), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_a_png_becomes_alpha(channels, dtype):
    array = values(channels, dtype)
    key = np.atleast_1d(array[2, 3])
    data = with_chunk(imagecodecs.png_encode(array), b"tRNS", key.astype(">u2").tobytes())
    picture = read_picture(data)
    transparent = (array.reshape(HEIGHT, WIDTH, channels) == key).all(-1)
    np.testing.assert_array_equal(picture.alpha, np.where(transparent, 0, 1))
    np.testing.assert_allclose(
        picture.pixels[..., 0] * np.iinfo(dtype).max,
        array.reshape(HEIGHT, WIDTH, -1)[..., 0],
        atol=1e-2,
    )
    assert picture.is_gray == (channels == 1)


def test_the_preview_behind_a_phone_photo_is_left_out():
    small = Image.new("RGB", (8, 6))
    picture = read_picture(save(photo(), "MPO", save_all=True, append_images=[small]))
    assert picture.pixels.shape == (HEIGHT, WIDTH, 3)


# ---- bad input, each with its message


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


BAD_FILES = {
    "an empty file": (lambda: b"", "is empty (0 bytes)"),
    "text": (lambda: b"no image at all", "is not an image that can be read (.avif, .bmp, .gif,"),
    "a PNG cut in half": (lambda: truncated(save(photo(), "PNG")), "is damaged or truncated"),
    "a 16-bit PNG cut in half": (
        lambda: truncated(imagecodecs.png_encode(values(3, np.uint16))),
        "is damaged or truncated",
    ),
    "a JPEG cut in half": (
        lambda: truncated(save(photo(), "JPEG", quality=100)),
        "is damaged or truncated",
    ),
    "a 16-bit TIFF cut in half": (
        lambda: truncated(tiff(values(3, np.uint16))),
        "is damaged or truncated",
    ),
    "an animated GIF": (
        lambda: save(photo(), "GIF", save_all=True, append_images=[photo("1")]),
        "has 2 frames; save the one to be restored",
    ),
    "an animated PNG": (
        lambda: save(photo(), "PNG", save_all=True, append_images=[photo("1")]),
        "has 2 frames",
    ),
    "a TIFF of pages": (
        lambda: save(photo(), "TIFF", save_all=True, append_images=[photo("L")] * 2),
        "has 3 frames",
    ),
    "a float TIFF of pages": (
        lambda: tiff(np.zeros((3, HEIGHT, WIDTH, 3), np.float32)),
        "has 3 pages; save the one",
    ),
    "a bomb": (
        lambda: png_header(60000, 60000) + png_chunk(b"IDAT", b""),
        "has more than 100 million pixels; reduce it",
    ),
    "just too many pixels": (
        lambda: png_header(10001, 10000) + png_chunk(b"IDAT", b""),
        "has more than 100 million pixels",
    ),
    "too many 16-bit pixels": (
        lambda: png_header(10001, 10000, 16) + png_chunk(b"IDAT", b""),
        "has more than 100 million",
    ),
    "integers of 32 bits": (
        lambda: tiff(np.full((HEIGHT, WIDTH), 70000, np.uint32), photometric="minisblack"),
        "stores uint32 values; 8-bit, 16-bit and floating-point images can be read",
    ),
    "five channels": (
        lambda: tiff(np.zeros((HEIGHT, WIDTH, 5), np.uint16)),
        "has 5 channels; 1 (gray) to 4 (RGB and alpha)",
    ),
    "16-bit CMYK": (
        lambda: tiff(np.zeros((HEIGHT, WIDTH, 4), np.uint16), photometric="separated"),
        "is a 16-bit SEPARATED TIFF; convert it to 16-bit gray or RGB first",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_refused_with_its_name_and_the_reason(name, tmp_path):
    make, reason = BAD_FILES[name]
    path = tmp_path / "photo.any"
    path.write_bytes(make())
    with pytest.raises(ValueError) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path} {reason}")


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.png", "No such file or directory"), ("", "Is a directory")]
)
def test_what_is_no_file_is_refused(name, reason, tmp_path):
    with pytest.raises(ValueError, match=f"cannot be read: {reason}"):
        read_picture(tmp_path / name)


def test_bytes_are_named_as_the_caller_wishes():
    with pytest.raises(ValueError, match=r"^the image is empty"):
        read_picture(b"")
    with pytest.raises(ValueError, match=r"^upload 3 is empty"):
        read_picture(b"", name="upload 3")


@pytest.mark.parametrize(
    "data",
    [save(photo(), "PNG"), save(photo(), "JPEG"), tiff(np.zeros((HEIGHT, WIDTH, 3), np.float32))],
)
def test_only_our_own_limit_decides_how_large_an_image_may_be(data, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)  # Pillow would warn
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(data).pixels.shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(ValueError, match=r"has more than .* million pixels"):
        read_picture(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "data",
    [
        save(photo(), "PNG", exif=exif_block()),
        imagecodecs.png_encode(values(3, np.uint16)),
        save(photo(), "JPEG", exif=exif_block()),
        save(photo("CMYK"), "JPEG"),
        save(photo(), "TIFF", compression="tiff_lzw"),
        tiff(values(3, np.uint16), compression="lzw"),
        tiff(np.zeros((HEIGHT, WIDTH, 3), np.float32), compression="zlib"),
        save(photo("RGBA"), "WEBP"),
        save(photo("P"), "GIF"),
        save(photo(), "PPM"),
    ],
    ids=["png", "png16", "jpeg", "cmyk", "tiff", "tiff16", "float tiff", "webp", "gif", "ppm"],
)
def test_damaged_bytes_never_raise_anything_but_a_message_with_the_name(data):
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 250), 3):
            damaged[place] = generator.integers(0, 256)
        try:
            read_picture(bytes(damaged), name="upload")
        except ValueError as error:
            assert str(error).startswith("upload ")
            refused += 1
    assert refused > 0


# ---- writing

OPAQUE, CLEAR = picture_from_pil(photo()), picture_from_pil(photo("RGBA"))
GRAY = picture_from_pil(photo("L"))
DEEP = read_picture(imagecodecs.png_encode(values(3, np.uint16)))
FLOAT = Picture(OPAQUE.pixels, bits=32)


@pytest.mark.parametrize(
    ("name", "picture", "expected"),
    [
        ("a.jpg", OPAQUE, "a.jpg"),
        ("A.JPEG", GRAY, "A.JPEG"),
        ("a.jpg", CLEAR, "a.png"),
        ("a.jpg", DEEP, "a.png"),
        ("a.webp", CLEAR, "a.webp"),
        ("a.webp", DEEP, "a.png"),
        ("a.bmp", OPAQUE, "a.bmp"),
        ("a.bmp", CLEAR, "a.png"),
        ("a.ppm", OPAQUE, "a.ppm"),
        ("a.ppm", GRAY, "a.png"),
        ("a.pgm", GRAY, "a.pgm"),
        ("a.pgm", OPAQUE, "a.png"),
        ("a.png", DEEP, "a.png"),
        ("a.png", FLOAT, "a.tif"),
        ("a.tiff", FLOAT, "a.tiff"),
        ("a.TIF", CLEAR, "a.TIF"),
        ("a.gif", OPAQUE, "a.png"),
        ("two.dots.gif", CLEAR, "two.dots.png"),
    ],
)
def test_a_format_that_cannot_hold_the_result_is_replaced(name, picture, expected, tmp_path):
    assert output_name(Path("somewhere") / name, picture) == expected
    written = read_picture(write_picture(tmp_path / expected, picture))
    assert (written.alpha is None, written.bits, written.is_gray) == (
        picture.alpha is None,
        picture.bits,
        picture.is_gray,
    )


def test_writing_makes_the_folder_and_leaves_one_readable_file(tmp_path):
    path = write_picture(tmp_path / "new" / "folder" / "photo.PNG", OPAQUE)
    assert [p.name for p in path.parent.iterdir()] == ["photo.PNG"]
    assert os.stat(path).st_mode & 0o777 == 0o644
    np.testing.assert_array_equal(read_picture(path).pixels, OPAQUE.pixels)


def test_an_exception_while_writing_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path / "photo.png") as temporary:
        temporary.write_bytes(b"half of it")
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_writing_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"\.png cannot hold floating-point pixels; write a \.tif"):
        write_picture(path, FLOAT)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_who_reads_the_old_file_meanwhile_reads_it_whole(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"old" * 1000)
    with path.open("rb") as reader:
        assert reader.read(3) == b"old"
        write_picture(path, OPAQUE)
        assert reader.read() == b"old" * 999


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be written as '.gif'; use one of .png, .jpg,"):
        write_picture(tmp_path / "photo.gif", OPAQUE)
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_is_meant_is_named(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"out is a file; a folder is needed to write photo.png to"
    ):
        write_picture(tmp_path / "out" / "photo.png", OPAQUE)


def test_a_folder_where_a_file_is_meant_is_named(tmp_path):
    (tmp_path / "photo.png").mkdir()
    with pytest.raises(ValueError, match=r"photo.png is a folder; a file is to be written there"):
        write_picture(tmp_path / "photo.png", OPAQUE)


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a folder that not even root can write to"
)
def test_a_folder_that_cannot_be_written_to_is_named():
    with pytest.raises(ValueError, match=r"^/proc/textir cannot be written to: "):
        write_picture("/proc/textir/photo.png", OPAQUE)


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    assert write_picture(path, OPAQUE).is_file()


# ---- the rest of the interface


def test_images_of_a_folder_are_listed_in_order_without_hidden_and_other_files(tmp_path):
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "inner/c.tif", "folder.png/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = ["a.JPG", "b.png", "folder.png/d.webp", "inner/c.tif"]
    assert [p.name for p in list_images(tmp_path)] == names[:2]
    assert [str(p.relative_to(tmp_path)) for p in list_images(tmp_path, recursive=True)] == names
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]


def test_a_missing_folder_cannot_be_listed(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere does not exist"):
        list_images(tmp_path / "nowhere")


def test_new_pixels_keep_everything_else():
    picture = Picture(OPAQUE.pixels, CLEAR.alpha, 8, False, SRGB, b"Exif\0\0")
    changed = picture.with_pixels(picture.pixels[::-1])
    np.testing.assert_array_equal(changed.pixels, picture.pixels[::-1])
    assert changed.alpha is picture.alpha and (changed.icc_profile, changed.exif) == (
        SRGB,
        b"Exif\0\0",
    )


def test_new_pixels_must_have_the_old_size():
    with pytest.raises(ValueError, match=r"`pixels` must be \(16, 24, 3\), got \(24, 16, 3\)"):
        OPAQUE.with_pixels(OPAQUE.pixels.swapaxes(0, 1))


def test_the_colours_of_a_gray_picture_are_averaged():
    picture = GRAY.with_pixels(np.float32([[[0.0, 0.3, 0.6]] * WIDTH] * HEIGHT))
    np.testing.assert_allclose(read_picture(encode_picture(picture)).pixels, 0.3, atol=0.5 / 255)
