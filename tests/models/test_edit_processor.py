"""What an edit keeps is kept exactly: holes, luma, sizes; masks are read or refused; photos that
are gray or enlarged are recognised."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve

from tests.tools.tiny import image, natural_photo
from textir.models import EditProcessor
from textir.models import edit_processor as source
from textir.models.edit_processor import (
    bicubic_matrix,
    enlarge,
    feather_into,
    fill_harmonic,
    grow_hole,
    is_gray,
    keep_known,
    keep_luminance,
    lab_from_rgb,
    looks_enlarged,
    luma,
    project_back,
    read_mask,
    reduce,
    rgb_from_lab,
)

HEIGHT, WIDTH = 40, 56


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_photo(height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> torch.Tensor:
    """`(1, 3, height, width)` in [0, 1] with structure of several sizes."""
    photo = torch.zeros(1, 3, height, width)
    for cells, weight in ((3, 0.5), (8, 0.3), (20, 0.2)):
        coarse = torch.rand(1, 3, cells, cells, generator=seeded(seed + cells))
        photo += weight * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return photo.clamp(0, 1)


def box_hole(height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    hole = torch.zeros(1, 1, height, width, dtype=torch.bool)
    hole[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = True
    return hole


# ---- colours


def test_lab_goes_to_and_fro():
    photo = torch.rand(2, 3, 16, 24, generator=seeded())
    torch.testing.assert_close(rgb_from_lab(lab_from_rgb(photo)), photo, atol=2e-5, rtol=0)


def test_colours_that_no_screen_has_leave_the_range():
    lab = torch.tensor([0.5, 1.2, -1.2])[None, :, None, None]
    assert rgb_from_lab(lab).max() > 1 or rgb_from_lab(lab).min() < 0


def test_luma_is_that_of_pillow():
    levels = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), generator=seeded())
    pixels = levels[0].permute(1, 2, 0).numpy().astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    assert np.array_equal(luma(levels)[0, 0].numpy(), expected)


@pytest.mark.parametrize("peak", [255, 65535])
def test_a_colored_photo_has_exactly_the_luma_of_the_gray_one(peak):
    gray = torch.randint(0, peak + 1, (2, 1, HEIGHT, WIDTH), generator=seeded()).float()
    wild = torch.rand(2, 3, HEIGHT, WIDTH, generator=seeded(1)) * 1.6 * peak - 0.3 * peak
    colors = keep_luminance(wild, gray, peak)
    assert torch.equal(luma(colors).float(), gray)
    assert torch.equal(colors, colors.round()) and colors.min() >= 0 and colors.max() <= peak
    assert (colors.amax(1) - colors.amin(1)).mean() > 0.1 * peak


def test_colours_that_have_the_luma_already_stay():
    levels = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), generator=seeded()).float()
    change = (keep_luminance(levels, luma(levels).float()) - levels).abs()
    assert change.max() <= 1


def test_a_gray_photo_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`gray` must hold integers from 0 to 255"):
        keep_luminance(torch.rand(1, 3, 8, 9), torch.full((1, 1, 8, 9), 0.5))
    with pytest.raises(ValueError, match="of the same size"):
        keep_luminance(torch.rand(1, 3, 8, 9), torch.ones(1, 1, 9, 8))


def jpeg_twin(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_gray_photo_is_gray_also_as_a_colour_jpeg(quality):
    gray = (smooth_photo().mean(1)[0].numpy() * 255).astype(np.uint8)
    assert is_gray(jpeg_twin(np.stack([gray] * 3, axis=-1), quality))


def test_sepia_and_a_single_coloured_thing_are_not_gray():
    gray = smooth_photo().mean(1, keepdim=True).expand(-1, 3, -1, -1).clone()
    assert is_gray(gray) and is_gray(gray[:, :1])
    assert not is_gray(gray * torch.tensor([1.0, 0.93, 0.8])[None, :, None, None])
    gray[:, 0, 4:8, 4:8] = 0.9
    gray[:, 1:, 4:8, 4:8] = 0.1
    assert not is_gray(gray)


# ---- holes


def exact_solution(photo: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Laplace's equation of `(H, W)` by elimination."""
    number = np.cumsum(hole).reshape(hole.shape) - 1
    rows, columns, values = [], [], []
    constant = np.zeros(hole.sum())
    for y, x in zip(*np.nonzero(hole)):
        links = 0
        for across, along in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            v, u = y + across, x + along
            if not (0 <= v < hole.shape[0] and 0 <= u < hole.shape[1]):
                continue
            links += 1
            if hole[v, u]:
                rows.append(number[y, x])
                columns.append(number[v, u])
                values.append(-1.0)
            else:
                constant[number[y, x]] += photo[v, u]
        rows.append(number[y, x])
        columns.append(number[y, x])
        values.append(float(links))
    filled = photo.copy()
    filled[hole] = spsolve(coo_matrix((values, (rows, columns))).tocsc(), constant)
    return filled


@pytest.mark.parametrize("kind", ["box", "edge", "specks"])
def test_the_fill_is_the_solution_of_laplaces_equation(kind):
    photo, hole = smooth_photo(), box_hole()
    if kind == "edge":
        hole = torch.zeros_like(hole)
        hole[..., : WIDTH // 2] = True
    if kind == "specks":
        hole = torch.rand(hole.shape, generator=seeded()) < 0.3
    filled = fill_harmonic(photo, hole)
    for channel in range(3):
        expected = exact_solution(photo[0, channel].double().numpy(), hole[0, 0].numpy())
        difference = np.abs(filled[0, channel].numpy() - expected)[hole[0, 0].numpy()] * 255
        assert difference.mean() < 0.5 and difference.max() < 3


def test_known_pixels_stay_to_the_bit_and_what_lies_in_the_hole_does_not_count():
    photo, hole = smooth_photo(), box_hole()
    spoilt = photo.masked_fill(hole, float("nan"))
    filled = fill_harmonic(spoilt, hole)
    assert filled.isfinite().all()
    assert torch.equal(filled.masked_fill(hole, 0), photo.masked_fill(hole, 0))
    assert torch.equal(filled, fill_harmonic(photo, hole))


def test_a_plane_is_filled_with_a_plane():
    plane = torch.linspace(0, 1, WIDTH).expand(1, 1, HEIGHT, WIDTH)
    assert (fill_harmonic(plane, box_hole()) - plane).abs().max() < 2 / 255


def test_a_batch_is_filled_as_its_images_are():
    photos = torch.cat([smooth_photo(seed=seed) for seed in (0, 1)])
    holes = torch.cat([box_hole(), box_hole().flip(-1).roll(5, -1)])
    single = fill_harmonic(photos[1:], holes[1:])
    torch.testing.assert_close(fill_harmonic(photos, holes)[1:], single, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_fill_keeps_the_type(dtype):
    filled = fill_harmonic(smooth_photo().to(dtype), box_hole())
    assert filled.dtype == dtype and filled.isfinite().all()


def test_a_photo_without_a_hole_stays_and_one_that_is_all_hole_is_refused():
    photo = smooth_photo()
    assert torch.equal(fill_harmonic(photo, torch.zeros_like(photo[:, :1])), photo)
    holes = torch.cat([torch.ones_like(photo[:, :1]), torch.zeros_like(photo[:, :1])])
    with pytest.raises(ValueError, match="covers the whole picture"):
        fill_harmonic(photo.expand(2, -1, -1, -1), holes)
    with pytest.raises(ValueError, match="of the same size"):
        fill_harmonic(photo, holes[:1].flip(0)[..., 1:])


def test_feathering_happens_inside_the_hole_alone():
    hole = box_hole()
    filled, result = torch.zeros(1, 3, HEIGHT, WIDTH), torch.ones(1, 3, HEIGHT, WIDTH)
    blended = feather_into(result, filled, hole, 3)
    assert (blended.masked_select(~hole) == 0).all()
    row = blended[0, 0, HEIGHT // 2, WIDTH // 4 : WIDTH // 4 + 5]
    torch.testing.assert_close(row, torch.tensor([0.25, 0.5, 0.75, 1, 1]))
    assert torch.equal(feather_into(result, filled, hole, 0) > 0, hole.expand(-1, 3, -1, -1))


def test_the_edge_of_the_picture_is_no_edge_of_the_hole():
    hole = torch.zeros(1, 1, 16, 24, dtype=torch.bool)
    hole[..., :12] = True
    blended = feather_into(torch.ones(1, 1, 16, 24), torch.zeros(1, 1, 16, 24), hole, 3)
    assert (blended[..., 0] == 1).all() and (blended[..., 11] == 0.25).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int32, torch.float32])
def test_known_pixels_are_those_of_the_photo_to_the_bit(dtype):
    hole = box_hole()
    photo = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), generator=seeded()).to(dtype)
    result = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), generator=seeded(1)).to(dtype)
    kept = keep_known(result, photo, hole)
    assert kept.dtype == dtype
    inside = hole.expand(-1, 3, -1, -1).numpy()
    assert np.array_equal(kept.numpy()[~inside], photo.numpy()[~inside])
    assert np.array_equal(kept.numpy()[inside], result.numpy()[inside])


def test_arrays_are_kept_likewise_and_other_types_refused():
    photo = np.zeros((8, 9, 3), np.uint16)
    hole = np.zeros((8, 9), bool)
    hole[2:4] = True
    kept = keep_known(photo + np.uint16(7), photo, hole)
    assert kept.dtype == np.uint16 and (kept[2:4] == 7).all() and kept.sum() == 2 * 9 * 3 * 7
    with pytest.raises(ValueError, match="agree in shape and type"):
        keep_known(photo.astype(np.uint8), photo, hole)


def test_a_hole_grows_in_every_direction():
    hole = torch.zeros(1, 1, 9, 11, dtype=torch.bool)
    hole[..., 4, 5] = True
    assert grow_hole(hole, 2).sum() == 25 and torch.equal(grow_hole(hole, 0), hole)


# ---- masks

DRAWN = box_hole()[0, 0].numpy()
WHITE = DRAWN.astype(np.uint8) * 255


def layer(color: tuple[int, int, int]) -> Image.Image:
    """Strokes of a colour on a transparent layer, as a drawing tool hands them on."""
    return Image.fromarray(np.dstack([np.where(DRAWN[..., None], color, 0), WHITE]).astype("uint8"))


def palette() -> Image.Image:
    picture = Image.fromarray(DRAWN.astype(np.uint8), "P")
    picture.putpalette([0, 0, 0, 250, 240, 255])
    return picture


MASKS = {
    "mode 1": Image.fromarray(WHITE).convert("1"),
    "array of mode 1": np.asarray(Image.fromarray(WHITE).convert("1")),
    "mode L": Image.fromarray(WHITE),
    "mode P": palette(),
    "mode I;16": Image.fromarray(WHITE.astype(np.uint16) * 257),
    "mode F": Image.fromarray(WHITE.astype(np.float32)),
    "white": Image.fromarray(WHITE).convert("RGB"),
    "red on black": Image.fromarray(np.dstack([WHITE, 0 * WHITE, 0 * WHITE])),
    "opaque": Image.fromarray(WHITE).convert("RGBA"),
    "LA": Image.fromarray(WHITE).convert("LA"),
    "white layer": layer((255, 255, 255)),
    "black layer": layer((0, 0, 0)),
    "red layer": layer((220, 30, 30)),
    "bool": DRAWN,
    "labels": DRAWN.astype(np.uint8),
    "int64": WHITE.astype(np.int64),
    "share": DRAWN.astype(np.float64),
    "float 255": WHITE.astype(np.float32),
    "channel last": WHITE[..., None],
    "tensor": torch.from_numpy(DRAWN),
    "tensor of a share": torch.from_numpy(DRAWN)[None].half(),
    "batch": torch.from_numpy(WHITE)[None, None],
    "RGB tensor": torch.from_numpy(WHITE).expand(1, 3, -1, -1),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind_mean_the_same_hole(name):
    hole = read_mask(MASKS[name], (HEIGHT, WIDTH))
    assert hole.shape == (1, 1, HEIGHT, WIDTH) and hole.dtype == torch.bool
    assert torch.equal(hole, box_hole())
    assert torch.equal(read_mask(MASKS[name], (HEIGHT, WIDTH), invert=True), ~box_hole())


def test_soft_masks_are_cut_at_the_threshold():
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    assert read_mask(ramp, (2, 256)).sum() == 2 * 128
    assert read_mask(ramp, (2, 256), threshold=200).sum() == 2 * 56
    assert read_mask(ramp / 255.0, (2, 256)).sum() == 2 * 128


PHOTO_WITH_ALPHA = np.dstack([np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)), WHITE])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((WIDTH, HEIGHT)), "size of the photo, 56 x 40, got 40 x 56"),
        (np.zeros((HEIGHT, WIDTH)), "The mask is empty: nothing is at least 128 of 255"),
        (np.ones((HEIGHT, WIDTH)), "covers the whole photo"),
        (np.full((HEIGHT, WIDTH), np.nan), "finite numbers from 0 on"),
        (-np.ones((HEIGHT, WIDTH)), "finite numbers from 0 on"),
        (PHOTO_WITH_ALPHA.astype(np.uint8), "Both colour and alpha of the mask vary"),
        (torch.zeros(2, 1, HEIGHT, WIDTH), "one image of 1 to 4 channels"),
        (np.zeros((HEIGHT, WIDTH, 5)), "one image of 1 to 4 channels"),
        (np.array([["a"]]), "one image of 1 to 4 channels"),
    ],
)
def test_masks_that_make_no_sense_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        read_mask(mask, (HEIGHT, WIDTH))


# ---- sizes


@pytest.mark.parametrize("size", [(20, 28), (13, 19), (5, 7), (3, 3), (27, 38), (90, 113)])
def test_resizing_is_that_of_pillow_in_floating_point(size):
    photo = torch.rand(1, 1, HEIGHT, WIDTH, generator=seeded())
    picture = Image.fromarray(photo[0, 0].numpy())
    expected = np.array(picture.resize(size[::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    resized = enlarge(photo, size) if size[0] > HEIGHT else reduce(photo, size)
    np.testing.assert_allclose(resized[0, 0].numpy(), expected, atol=1e-6)


def test_bands_are_the_whole_matrix():
    photo = torch.rand(1, 2, 300, 421, generator=seeded())
    expected = bicubic_matrix(300, 150) @ photo @ bicubic_matrix(421, 133).T
    torch.testing.assert_close(source._resize(photo, (150, 133)), expected, atol=1e-6, rtol=0)


def test_the_adjoint_is_the_transpose():
    large, small = torch.rand(1, 1, 200, 161).double(), torch.rand(1, 1, 77, 53).double()
    down = bicubic_matrix(200, 77).double() @ large @ bicubic_matrix(161, 53).double().T
    spread = source._resize_adjoint(small.float(), (200, 161)).double()
    assert (down * small).sum().item() == pytest.approx((large * spread).sum().item(), rel=1e-5)


def test_growing_by_reduction_and_the_reverse_are_refused():
    photo = torch.rand(1, 3, 16, 24)
    with pytest.raises(ValueError, match="use `enlarge`"):
        reduce(photo, (16, 25))
    with pytest.raises(ValueError, match="use `reduce`"):
        enlarge(photo, (15, 24))


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 16, 2.7])
@pytest.mark.parametrize("peak", [255, 65535])
def test_an_enlarged_photo_reduced_again_is_the_photo(factor, peak):
    photo = smooth_photo(96, 144)
    size = tuple(round(side / factor) for side in photo.shape[-2:])
    low = (reduce(photo, size) * peak).round() / peak
    high = project_back(enlarge(low, photo.shape[-2:]), low)
    assert high.min() >= 0 and high.max() <= 1
    assert (reduce(high, size) - low).abs().max() * 255 < 0.25
    assert (reduce((high * 255).round() / 255, size) - low).abs().max() * 255 < 0.5


def test_projection_starts_from_the_image_and_keeps_what_cannot_be_told():
    photo = smooth_photo(64, 96)
    low = reduce(photo, (32, 48))
    torch.testing.assert_close(project_back(photo, low), photo, atol=1e-3, rtol=0)
    assert torch.equal(project_back(photo, low, steps=0), photo)


def test_a_photo_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="agree in batch and channels"):
        project_back(torch.rand(1, 3, 16, 24), torch.rand(1, 1, 8, 12))


def enlarged_twin(pixels: np.ndarray, factor: int) -> np.ndarray:
    picture = Image.fromarray(pixels)
    small = picture.resize((picture.width // factor, picture.height // factor), Image.BICUBIC)
    return np.asarray(small.resize(picture.size, Image.BICUBIC))


def test_enlarged_photos_are_told_from_native_ones():
    pixels = natural_photo()
    assert looks_enlarged(pixels) == 1
    assert looks_enlarged(enlarged_twin(pixels, 2)) == 2
    assert looks_enlarged(enlarged_twin(pixels, 4)) == 4
    assert looks_enlarged(enlarged_twin(pixels, 4)[:60]) == 1
    assert looks_enlarged(np.full((80, 90, 3), 7, np.uint8)) == 1


# ---- the component


def test_the_component_is_saved_with_its_settings(tmp_path):
    EditProcessor(mask_threshold=90, feather=1, grow=2).save_pretrained(tmp_path)
    loaded = EditProcessor.from_pretrained(tmp_path)
    assert (loaded.mask_threshold, loaded.feather, loaded.grow) == (90, 1, 2)
    assert loaded.back_projection_steps == 60
    with pytest.raises(ValueError, match="must be at least 0"):
        EditProcessor(feather=-1)


def test_the_component_grows_masks():
    hole = EditProcessor(grow=2).read_mask(WHITE, (HEIGHT, WIDTH))
    assert torch.equal(hole, grow_hole(box_hole(), 2))
    with pytest.raises(ValueError, match="Grown by 50 pixels the hole covers the whole photo"):
        EditProcessor(grow=50).read_mask(WHITE, (HEIGHT, WIDTH))


def test_the_component_finishes_every_task():
    processor = EditProcessor()
    photo = (smooth_photo() * 255).round() / 255
    result = image(HEIGHT, WIDTH)
    filled = processor.finish_inpainting(result, photo, box_hole())
    assert torch.equal(filled.masked_fill(box_hole(), 0), photo.masked_fill(box_hole(), 0))
    colored = processor.finish_colorization(result, photo)
    assert torch.equal(luma((colored * 255).round()), luma((photo * 255).round()))
    large = processor.finish_super_resolution(enlarge(result, (80, 112)), photo)
    assert (reduce(large, (HEIGHT, WIDTH)) - photo).abs().max() * 255 < 0.5
