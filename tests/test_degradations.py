"""Degradations do what their formula says, draw from their generator alone, and recipes are read or
refused."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tools.tiny import image
from textir.degradations import (
    EDITS,
    LABELS,
    MASKS,
    RECIPES,
    Mixture,
    Recipe,
    apply_doses,
    camera_noise,
    camera_path_kernel,
    defocus,
    degrade,
    developed_noise,
    dim,
    disc_kernel,
    down,
    down_up,
    draw_mask,
    flat_objects,
    gaussian_noise,
    gray,
    haze,
    jpeg,
    lightness,
    low_light,
    mist,
    motion_blur,
    poisson_gaussian_noise,
    rain,
    random_depth,
    room_depth,
    smooth_field,
    take_away,
)

NOT_RANDOM = {"jpeg", "downup"}
RANDOM = sorted(set(RECIPES) - NOT_RANDOM)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def roughness(picture: torch.Tensor) -> float:
    """Mean squared difference of neighbouring pixels."""
    return (picture.diff(dim=-1).square().mean() + picture.diff(dim=-2).square().mean()).item()


# ---- what every degradation keeps


@pytest.mark.parametrize("size", [(16, 24), (17, 31), (40, 24)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RECIPES)
def test_shape_and_range_stay_and_the_picture_changes(name, channels, size):
    clean = image(*size, batch=2)[:, :channels]
    degraded = degrade(clean, name, seeded())
    assert degraded.shape == clean.shape and degraded.dtype == clean.dtype
    assert degraded.isfinite().all()
    assert not torch.allclose(degraded, clean, atol=0.01)
    if name != "noise":
        assert degraded.min() >= 0 and degraded.max() <= 1


@pytest.mark.parametrize("end", ["low", "high"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_ends_of_every_range_work_on_tiny_pictures(name, end):
    degraded = degrade(image(16, 24), f"{name}:{getattr(RECIPES[name], end)}", seeded())
    assert degraded.shape == (1, 3, 16, 24) and degraded.isfinite().all()


@pytest.mark.parametrize("name", RECIPES)
def test_double_precision_stays(name):
    assert degrade(image().double(), name, seeded()).dtype == torch.float64


@pytest.mark.parametrize("name", RECIPES)
def test_the_same_seed_gives_the_same_picture(name):
    assert torch.equal(degrade(image(), name, seeded(1)), degrade(image(), name, seeded(1)))


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_gives_another_picture(name):
    assert not torch.allclose(
        degrade(image(), name, seeded(1)), degrade(image(), name, seeded(2)), atol=1e-3
    )


@pytest.mark.parametrize("name", RANDOM)
def test_every_image_of_a_batch_has_its_own_draw(name):
    ingredient = RECIPES[name]
    twins = image().expand(2, -1, -1, -1)
    first, second = ingredient.function(
        twins, **{ingredient.parameter: ingredient.levels["medium"]}, generator=seeded()
    )
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("name", RECIPES)
def test_only_the_generator_is_drawn_from_and_the_input_left_as_it_was(name):
    clean = image()
    before, state = clean.clone(), torch.get_rng_state()
    degraded = degrade(clean, name, seeded())
    assert torch.equal(clean, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not degraded.requires_grad


@pytest.mark.parametrize("name", ["noise", "haze", "blur", "defocus", "downup"])
def test_gradients_flow_through_and_stay_finite(name):
    clean = image().requires_grad_()
    degrade(clean, name, seeded()).sum().backward()
    assert clean.grad.isfinite().all() and clean.grad.abs().sum() > 0


# ---- noise


@pytest.mark.parametrize("sigma", [5, 25, 50])
def test_noise_has_the_deviation_asked_for(sigma):
    noise = gaussian_noise(torch.full((1, 3, 96, 128), 0.5), sigma, generator=seeded()) - 0.5
    assert noise.std().item() * 255 == pytest.approx(sigma, rel=0.02)
    assert abs(noise.mean().item()) * 255 < 0.02 * sigma + 0.05


def test_noise_is_not_clipped():
    noisy = gaussian_noise(torch.zeros(1, 3, 16, 24), 25, generator=seeded())
    assert noisy.min() < 0


def test_eight_bit_noise_lies_on_the_grid_of_a_file():
    noisy = degrade(image(), "noise8:25", seeded()) * 255
    torch.testing.assert_close(noisy, noisy.round(), atol=1e-4, rtol=0)
    assert noisy.min() == 0 and noisy.max() == 255


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()


def test_developed_noise_is_clumped_and_shared_by_the_channels():
    """As in real pairs: neighbours correlate by 0.7, pixels three apart by 0.2, channels by 0.4."""
    flat = torch.full((16, 3, 96, 96), 0.5)
    noise = developed_noise(flat, 300.0, generator=seeded()) - flat
    assert 0.6 < correlation(noise[..., 1:], noise[..., :-1]) < 0.9
    assert 0.1 < correlation(noise[..., 3:], noise[..., :-3]) < 0.4
    assert 0.2 < correlation(noise[:, 0], noise[:, 1]) < 0.7
    assert abs(noise.mean()) < 0.01


def test_the_first_step_of_it_is_known_to_neighbours_alone():
    flat = torch.full((8, 3, 96, 96), 0.5)
    noise = camera_noise(flat, 300.0, generator=seeded()) - flat
    assert abs(correlation(noise[..., 3:], noise[..., :-3])) < 0.05
    assert abs(correlation(noise[:, 0], noise[:, 1])) < 0.05


@pytest.mark.parametrize("signal", [0.1, 0.4, 0.8])
def test_shot_noise_grows_with_the_signal(signal):
    flat = torch.full((1, 1, 192, 256), signal)
    noisy = poisson_gaussian_noise(flat, peak=500, read_sigma=0, generator=seeded())
    assert noisy.mean().item() == pytest.approx(signal, rel=0.01)
    assert noisy.var().item() == pytest.approx(signal / 500, rel=0.05)


def test_read_noise_is_added_in_the_dark():
    noisy = poisson_gaussian_noise(torch.zeros(1, 1, 192, 256), read_sigma=2, generator=seeded())
    assert noisy[noisy > 0].square().mean().sqrt().item() * 255 == pytest.approx(2, rel=0.05)


# ---- weather


def test_haze_follows_its_formula():
    clean, depth = image(), torch.linspace(0, 1, 40).expand(1, 1, 24, 40)
    beta, light = 1.5, 0.8
    transmission = torch.exp(-beta * depth)
    black = haze(torch.zeros_like(clean), beta, (light, light), depth, seeded())
    # Camera excluded: no light there.
    tinted = (black / (1 - transmission))[..., 1:].mean((2, 3), keepdim=True)
    assert ((tinted - light).abs() < 4 * 0.015).all() and tinted.std() > 0
    expected = clean * transmission + tinted * (1 - transmission)
    torch.testing.assert_close(haze(clean, beta, (light, light), depth, seeded()), expected)


def test_every_image_has_an_airlight_of_the_range():
    far = haze(torch.zeros(16, 3, 16, 24), 10, (0.3, 0.9), torch.ones(16, 1, 16, 24), seeded())
    lights = far.mean((1, 2, 3))
    assert lights.min() > 0.25 and lights.max() < 0.95 and lights.std() > 0.1


def test_haze_leaves_what_stands_at_the_camera():
    clean = image()
    torch.testing.assert_close(
        haze(clean, depth=torch.zeros(1, 1, 24, 40), generator=seeded()), clean
    )


def test_depth_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"`depth` must be \(2, 1, 24, 40\) for this image, got \(2, 1, 40, 24\)"
    ):
        haze(image(batch=2), depth=torch.zeros(2, 1, 40, 24))


def test_more_scattering_hides_more():
    contrasts = [
        haze(image(), beta, generator=seeded()).std().item() for beta in (0.1, 0.5, 1.5, 4)
    ]
    assert contrasts == sorted(contrasts, reverse=True) and contrasts[0] > 3 * contrasts[-1]


def test_rain_only_brightens_a_dark_scene():
    scene = image() * 0.5
    assert (rain(scene, 1.0, generator=seeded()) >= scene - 1e-6).all()


def test_streaks_without_a_veil_darken_nothing():
    scene = image()
    assert (rain(scene, 1.0, veil=(0, 0), generator=seeded()) >= scene - 1e-6).all()


def test_rain_grows_from_next_to_nothing():
    scene = image(48, 64) * 0.5
    changes = [
        (rain(scene, intensity, generator=seeded()) - scene).abs().mean().item()
        for intensity in (0, 0.3, 1)
    ]
    assert changes[0] < 0.015 and changes == sorted(changes) and changes[2] > 5 * changes[0]


# ---- light and lens


def test_a_stop_halves_the_light():
    scene = image(48, 64)
    for stops in (0, 1, 3):
        dark = low_light(scene, stops, peak=(1e6, 1e6), cast=0, generator=seeded())
        assert (dark**2.2).mean().item() == pytest.approx(
            (scene**2.2).mean().item() / 2**stops, rel=0.02
        )


def test_low_light_darkens_and_casts():
    dark = low_light(torch.full((1, 3, 48, 64), 0.5), generator=seeded())
    assert dark.mean() < 0.3
    assert dark.mean((0, 2, 3)).std() > 1e-3


@pytest.mark.parametrize("length", [0.0, 1.0, 7.0, 15.5, 40.0])
def test_a_camera_path_spreads_the_light_over_its_length(length):
    kernel = camera_path_kernel(length, seeded())
    assert kernel.sum().item() == pytest.approx(1, abs=1e-5) and (kernel >= 0).all()
    rows, columns = (kernel[0].sum(dim).nonzero().flatten() for dim in (1, 0))
    extent = max(len(rows), len(columns))
    assert extent >= length - 1 and extent <= max(length, 1) + 2


@pytest.mark.parametrize("radius", [0.0, 0.5, 2.0, 4.7])
def test_a_disc_has_sum_one_and_its_area(radius):
    disc = disc_kernel(radius)
    assert disc.sum().item() == pytest.approx(1, abs=1e-6)
    assert (1 / disc.max()).item() == pytest.approx(max(1, np.pi * (radius**2 + 1 / 12)), rel=0.35)
    torch.testing.assert_close(disc, disc.flip(1).mT)


@pytest.mark.parametrize(
    "blur",
    [
        lambda flat: motion_blur(flat, 9, generator=seeded()),
        lambda flat: defocus(flat, 3, varying=False),
        lambda flat: defocus(flat, 3, varying=True, generator=seeded()),
        down_up,
    ],
    ids=["motion", "defocus", "varying defocus", "down and up"],
)
def test_blur_leaves_a_flat_picture_alone_and_smooths_another(blur):
    flat = torch.full((2, 3, 24, 40), 0.3)
    torch.testing.assert_close(blur(flat), flat)
    rough = image(24, 40, batch=2)
    assert roughness(blur(rough)) < 0.7 * roughness(rough)


def test_varying_defocus_is_sharper_than_the_widest_disc():
    rough = image(48, 64)
    assert roughness(defocus(rough, 4, varying=True, generator=seeded())) > 3 * roughness(
        defocus(rough, 4, varying=False)
    )


# ---- files and resolution


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [5, 30, 95])
def test_jpeg_is_that_of_pillow(quality, channels):
    clean = image(17, 31)[:, :channels]
    array = (clean[0] * 255).round().byte().movedim(0, -1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array if channels == 3 else array[..., 0]).save(buffer, "JPEG", quality=quality)
    expected = np.asarray(Image.open(buffer)).reshape(array.shape)
    decoded = (jpeg(clean, quality)[0] * 255).round().byte().movedim(0, -1).numpy()
    np.testing.assert_array_equal(decoded, expected)


def test_jpeg_takes_one_or_three_channels():
    with pytest.raises(ValueError, match="JPEG stores 1 or 3 channels, got 2"):
        jpeg(image()[:, :2])


def test_a_greater_reduction_loses_more():
    rough = image(48, 64)
    kept = [roughness(down_up(rough, factor)) / roughness(rough) for factor in (1, 2, 3, 8)]
    assert kept[0] == pytest.approx(1, abs=1e-3)
    assert kept == sorted(kept, reverse=True) and kept[1] < 0.2


# ---- what they are made of


def test_a_smooth_field_spans_zero_to_one():
    field = smooth_field(24, 40, seeded())
    assert field.shape == (1, 1, 24, 40) and (field.min(), field.max()) == (0, 1)
    assert roughness(field) < 0.05


def test_depth_lies_between_camera_and_horizon_and_differs_between_images():
    depth = random_depth(image(24, 40).expand(2, -1, -1, -1), seeded())
    assert depth.shape == (2, 1, 24, 40)
    assert depth.min() > 0.05 and depth.max() <= 1 + 1e-6
    assert not torch.allclose(depth[0], depth[1], atol=0.01)


def test_depth_presses_the_edges_of_the_photo_into_itself():
    photo = torch.zeros(1, 3, 48, 64)
    photo[..., 40:] = 1
    depths = random_depth(photo.expand(16, -1, -1, -1), seeded())
    steps = depths.diff(dim=-1).abs().mean((0, 1, 2))
    assert steps[39] > 3 * steps.median()


def test_every_depth_reaches_the_horizon_and_starts_at_a_distance_of_its_own():
    depths = random_depth(image(24, 40).expand(8, -1, -1, -1), seeded())
    nearest, farthest = depths.amin((1, 2, 3)), depths.amax((1, 2, 3))
    torch.testing.assert_close(farthest, torch.ones(8))
    assert nearest.min() >= 0.05 - 1e-6 and nearest.max() <= 0.5 + 1e-6 and nearest.std() > 0.02


@pytest.mark.parametrize("size", [(3, 5), (7, 4), (16, 90)])
@pytest.mark.parametrize("channels", [1, 3])
def test_depth_can_be_made_for_tiny_and_narrow_photos(channels, size):
    depth = random_depth(image(*size)[:, :channels], seeded())
    assert depth.shape == (1, 1, *size) and depth.isfinite().all()


@pytest.mark.parametrize("count", [1, 5, 24])
def test_flat_objects_are_regions_of_one_value_each(count):
    field = flat_objects(image(24, 40), seeded(), count)
    assert field.shape == (1, 1, 24, 40) and field.min() >= 0 and field.max() <= 1
    assert 1 <= len(field.unique()) <= count and (count == 1 or len(field.unique()) > 1)


def test_flat_objects_end_where_those_of_the_photo_do():
    photo = torch.zeros(1, 3, 40, 60)
    photo[..., 35:] = 1
    changes = (
        sum(
            (flat_objects(photo, seeded(seed)).diff(dim=-1) != 0).float().mean((0, 1, 2))
            for seed in range(10)
        )
        / 10
    )
    others = torch.cat([changes[:34], changes[35:]])
    assert changes[34] > 0.9 and others.max() < 0.6


def test_flat_objects_of_a_large_photo_have_its_size_and_few_edges():
    field = flat_objects(image(200, 270), seeded())
    assert field.shape == (1, 1, 200, 270) and field.min() >= 0 and field.max() <= 1


def test_flat_objects_draw_from_their_generator_alone():
    first, second, other = (flat_objects(image(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)


# ---- recipes


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        ("noise:25", [("noise", 25, 25)]),
        ("noise:0..50", [("noise", 0, 50)]),
        ("haze:0.5..1.5", [("haze", 0.5, 1.5)]),
        ("rain:heavy+haze:0.8", [("rain", 1.0, 1.0), ("haze", 0.8, 0.8)]),
        ("haze:0.8 + rain:heavy", [("haze", 0.8, 0.8), ("rain", 1.0, 1.0)]),
        ("poisson:light..heavy", [("poisson", 300, 30)]),
        ("jpeg", [("jpeg", 25, 25)]),
        ("clean", []),
        ("", []),
        ("clean+noise8:light", [("noise8", 15, 15)]),
    ],
)
def test_a_recipe_is_read(recipe, steps):
    assert list(Recipe.parse(recipe).steps) == steps
    assert str(Recipe.parse(recipe)) == recipe


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            "snow",
            r"Unknown degradation 'snow' in recipe 'snow'; known are noise, .* edits .*down\.",
        ),
        ("noise:25+snow:3", "Unknown degradation 'snow' in recipe 'noise:25\\+snow:3'"),
        (
            "noise:much",
            "'much' in recipe 'noise:much' is neither a number nor one of light, medium, heavy",
        ),
        ("noise:10..", "'' in recipe 'noise:10..' is neither a number"),
        ("noise:-1", r"noise takes sigma from 0 to 255 \(0-255 scale, unclipped\), got -1"),
        ("noise:0..300", "got 300"),
        ("noise:nan", "got nan"),
        ("rain:1.5", "rain takes intensity from 0 to 1"),
        ("downup:0.5", r"downup takes factor from 1 to 64 \(reduction of each side\), got 0.5"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(recipe, message):
    with pytest.raises(ValueError, match=message):
        Recipe.parse(recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_every_level_lies_in_the_range_of_its_recipe(name):
    ingredient = RECIPES[name]
    assert set(ingredient.levels) == {"light", "medium", "heavy"}
    assert all(ingredient.low <= value <= ingredient.high for value in ingredient.levels.values())


@pytest.mark.parametrize("name", RECIPES)
def test_levels_grow_worse(name):
    clean = down_up(image(64, 96, batch=4), 8)
    light, medium, heavy = (
        (degrade(clean, f"{name}:{level}", seeded()) - clean).square().mean()
        for level in ("light", "medium", "heavy")
    )
    assert light < medium < heavy


@pytest.mark.parametrize("name", RECIPES)
def test_levels_have_the_same_severity_in_every_recipe(name):
    ingredient = RECIPES[name]
    severities = [
        ingredient.severity(ingredient.levels[level]) for level in ("light", "medium", "heavy")
    ]
    assert severities == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("name", RECIPES)
def test_severity_grows_steadily_from_the_mildest_value_to_the_worst(name):
    ingredient = RECIPES[name]
    light, medium, heavy = (ingredient.levels[level] for level in ("light", "medium", "heavy"))
    mildest, worst = (
        (ingredient.low, ingredient.high) if light < heavy else (ingredient.high, ingredient.low)
    )
    mild, bad = np.linspace(light, medium, 201), np.linspace(medium, heavy, 201)
    values = [*np.linspace(mildest, light, 50), *mild, *bad, *np.linspace(heavy, worst, 50)]
    severities = [ingredient.severity(value) for value in values]
    assert all(0 <= severity <= 1 for severity in severities)
    assert np.diff(severities).min() > -1e-9
    between = severities[50:-50]
    np.testing.assert_allclose(
        between, [*np.linspace(0.25, 0.5, 201), *np.linspace(0.5, 0.75, 201)], atol=1e-6
    )


def test_a_drawn_recipe_has_one_value_in_its_range_for_each_step():
    generator, drawn = seeded(), []
    for _ in range(50):
        doses = Recipe.parse("noise:0..50+rain:heavy+poisson:light..heavy").draw(generator)
        (first, sigma), (second, intensity), (third, peak) = doses
        assert (first, second, third) == ("noise", "rain", "poisson")
        assert 0 <= sigma <= 50 and intensity == 1.0 and 30 <= peak <= 300
        drawn.append((sigma, peak))
    assert (
        len(set(drawn)) == 50
        and np.ptp([sigma for sigma, _ in drawn]) > 40
        and np.ptp([peak for _, peak in drawn]) > 200
    )


def test_drawing_a_recipe_without_ranges_uses_no_randomness():
    generator = seeded()
    assert Recipe.parse("noise:25+downup").draw(generator) == [("noise", 25), ("downup", 3)]
    assert Recipe.parse("clean").draw(generator) == []
    assert torch.equal(generator.get_state(), seeded().get_state())


@pytest.mark.parametrize("name", RECIPES)
def test_drawn_steps_applied_are_the_recipe(name):
    recipe, generator = f"{name}:light..heavy", seeded(4)
    assert torch.equal(
        apply_doses(image(), Recipe.parse(recipe).draw(generator), generator),
        degrade(image(), recipe, seeded(4)),
    )


def test_no_steps_leave_the_picture_as_it_is():
    assert torch.equal(apply_doses(image(), []), image())


def test_a_recipe_names_what_it_leaves_in_a_photo():
    assert Recipe.parse("dim:0.5+noise8+jpeg:20").labels == ("lowlight", "noise", "jpeg")
    assert Recipe.parse("clean").labels == ()
    assert Recipe.parse("jpeg:25").draw()[0].severity == 0.5


def test_clean_returns_the_picture():
    assert torch.equal(degrade(image(), "clean", seeded()), image())


def test_steps_are_applied_in_order():
    generator = seeded()
    expected = down_up(gaussian_noise(image(), 25, generator=generator), 2)
    assert torch.equal(degrade(image(), "noise:25+downup:2", seeded()), expected)
    assert not torch.allclose(degrade(image(), "downup:2+noise:25", seeded()), expected, atol=0.01)


def test_a_range_gives_every_image_its_own_value():
    noise = degrade(torch.full((8, 3, 24, 40), 0.5), "noise:0..50", seeded()) - 0.5
    sigmas = noise.std((1, 2, 3)) * 255
    assert sigmas.min() >= 0 and sigmas.max() < 53
    assert sigmas.std() > 5


def test_a_batch_is_its_images_one_after_another():
    batch, generator = image(batch=3), seeded()
    singles = torch.cat(
        [degrade(single, "rain:0.2..1+noise8:5..50", generator) for single in batch.split(1)]
    )
    assert torch.equal(degrade(batch, "rain:0.2..1+noise8:5..50", seeded()), singles)


def test_an_image_without_batch_is_refused():
    with pytest.raises(
        ValueError, match=r"`image` must be \(B, C, H, W\), got shape \(3, 24, 40\)"
    ):
        degrade(image()[0], "noise")


# ---- nearer to real files


def test_dimness_darkens_display_values_and_grows():
    photo = image(24, 40, batch=6) * 0.8 + 0.1
    means = [dim(photo, amount, seeded()).mean().item() for amount in (0.1, 0.5, 1.0)]
    assert photo.mean().item() > means[0] > means[1] > means[2] > 0


def test_mist_leaves_the_whole_picture_pale_and_flat():
    photo = image(24, 40, batch=8)
    veiled = mist(photo, 0.7, (0.9, 0.9), seeded())
    contrast = veiled.std((1, 2, 3)) / photo.std((1, 2, 3))
    assert (contrast < 0.8).all() and (contrast > 0.4).all()
    assert (veiled.mean((1, 2, 3)) > photo.mean((1, 2, 3))).all()


def test_a_room_recedes_from_its_border_to_its_far_wall():
    photo = torch.full((1, 3, 60, 80), 0.5)
    depths = [room_depth(photo, seeded(seed)) for seed in range(20)]
    assert all(
        depth.shape == (1, 1, 60, 80) and depth.min() > 0 and depth.max() == 1 for depth in depths
    )
    border = [
        depth[..., 0].mean()
        + depth[..., -1].mean()
        + depth[..., 0, :].mean()
        + depth[..., -1, :].mean()
        for depth in depths
    ]
    middle = [4 * depth[..., 20:40, 30:50].mean() for depth in depths]
    assert sum(middle) > 1.2 * sum(border)


# ---- edits


@pytest.mark.parametrize("kind", ["wide", "strokes", "boxes", "box", "mixed"])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_holes_have_about_the_share_asked_for(kind, share):
    shares = []
    for seed in range(12):
        hole = draw_mask(80, 112, share, kind, seeded(seed))
        assert hole.shape == (1, 1, 80, 112) and hole.dtype == torch.bool
        shares.append(hole.float().mean().item())
    assert np.mean(shares) == pytest.approx(share, rel=0.15)
    assert all(0.4 * share < drawn < 1.7 * share for drawn in shares)
    assert not torch.equal(hole, draw_mask(80, 112, share, kind, seeded(0)))
    assert torch.equal(hole, draw_mask(80, 112, share, kind, seeded(11)))


@pytest.mark.parametrize("kind", ["wide", "strokes", "boxes", "box"])
@pytest.mark.parametrize("size", [(1, 2), (2, 1), (3, 3), (16, 24)])
@pytest.mark.parametrize("share", [0, 0.99, 1])
def test_a_hole_is_never_nothing_and_never_everything(kind, size, share):
    assert 0 < draw_mask(*size, share, kind, seeded()).sum() < size[0] * size[1]


def test_masks_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="a kind of wide, strokes, boxes, box, mixed"):
        draw_mask(16, 24, kind="stars")
    with pytest.raises(ValueError, match="a share from 0 to 1"):
        draw_mask(16, 24, 1.5)


@pytest.mark.parametrize("name", MASKS)
def test_masked_photos_are_black_in_the_hole_and_themselves_elsewhere(name):
    clean = image(40, 56, batch=2) + 0.1
    image_left, hole = take_away(clean, f"{name}:0.25", seeded())
    assert torch.equal(image_left, clean.masked_fill(hole, 0))
    assert 0 < hole[0].float().mean() < 1 and not torch.equal(hole[0], hole[1])
    assert torch.equal(degrade(clean, f"{name}:0.25", seeded()), image_left)


def test_what_comes_after_a_mask_stays_out_of_the_hole():
    image_left, hole = take_away(image(40, 56), "box:0.25+noise:25", seeded())
    assert (image_left.masked_select(hole) == 0).all()
    small, hole = take_away(image(40, 56), "box:0.25+down:4", seeded())
    assert small.shape[-2:] == hole.shape[-2:] == (10, 14)
    assert (small.masked_select(hole) == 0).all()


def test_gray_is_the_luma_of_pillow():
    pixels = (image(40, 56)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L")).astype(float)
    tone = gray(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)
    assert np.abs(tone[0, 0].numpy() * 255 - expected).max() <= 0.51
    assert torch.equal(tone[:, 0], tone[:, 2])


def test_lightness_stays_when_colour_goes():
    from skimage.color import rgb2lab

    clean = image(40, 56)
    before, after = (
        rgb2lab(photo[0].permute(1, 2, 0).numpy()) for photo in (clean, lightness(clean))
    )
    assert np.abs(before[..., 0] - after[..., 0]).max() < 0.05
    assert np.abs(after[..., 1:]).max() < 0.05


@pytest.mark.parametrize("function", [gray, lightness])
def test_half_of_the_colour_may_go(function):
    clean = image(40, 56)
    half = function(clean, 0.5)
    torch.testing.assert_close(half, (clean + function(clean)) / 2)
    assert torch.equal(function(clean[:, :1]), clean[:, :1])


@pytest.mark.parametrize("factor", [2, 3.5, 16])
def test_reduction_is_that_of_pillow(factor):
    clean = image(48, 64)
    size = (round(48 / factor), round(64 / factor))
    picture = Image.fromarray(clean[0, 0].numpy())
    expected = np.array(picture.resize(size[::-1], Image.Resampling.BICUBIC)).clip(0, 1)
    np.testing.assert_allclose(down(clean, factor)[0, 0].numpy(), expected, atol=1e-5)


def test_photos_of_a_batch_that_get_different_sizes_are_refused():
    with pytest.raises(ValueError, match="degrade them one at a time"):
        degrade(image(48, 64, batch=4), "down:2..16", seeded())
    assert degrade(image(48, 64), "down:2..16", seeded()).shape[-1] < 64


def test_restorers_know_nothing_of_edits():
    assert not {"inpaint", "colorize", "super-resolution"} & set(LABELS)
    for name in EDITS:
        with pytest.raises(ValueError, match=f"`{name}` in recipe .* is for edits"):
            Recipe.parse(f"noise:5+{name}")
        with pytest.raises(ValueError, match="not for restorers"):
            Mixture.parse([f"{name}@2", "noise"])
    recipe = Recipe.parse("blur:5+down:4+jpeg:60", edits=True)
    assert recipe.labels == ("blur", "jpeg") and recipe.tasks == ("super-resolution",)
    assert Mixture.parse(["mask:0.05..0.5@2", "gray"], edits=True).shares == (2 / 3, 1 / 3)


@pytest.mark.parametrize("name", EDITS)
def test_every_level_of_an_edit_lies_in_its_range(name):
    ingredient = EDITS[name]
    assert set(ingredient.levels) == {"light", "medium", "heavy"}
    assert all(ingredient.low <= value <= ingredient.high for value in ingredient.levels.values())
    assert degrade(image(), name, seeded()).isfinite().all()
