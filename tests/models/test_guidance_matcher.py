"""The matcher finds each place of the degraded image in the guidance and brings its features
there."""

import pytest
import torch
import torch.nn.functional as F

from tests.tools.tiny import image
from textir.models import GuidanceMatcher, NAFNet
from textir.models.guidance_matcher import cut_squares, gather_blocks, patch_cosine

WIDTHS = (4, 6, 8)


def matcher(**options) -> GuidanceMatcher:
    return GuidanceMatcher(**{"widths": WIDTHS, "depth": 1, "block_size": 4, **options})


def interior(field: torch.Tensor, margin: int = 3) -> torch.Tensor:
    return field[..., margin:-margin, margin:-margin]


def places(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")


# ---- what comes out


@pytest.mark.parametrize("guidance_size", [(24, 40), (40, 24), (64, 100), (16, 24)])
@pytest.mark.parametrize("size", [(24, 40), (17, 31), (16, 24), (50, 16)])
def test_features_and_confidence_have_the_geometry_of_the_degraded_image(size, guidance_size):
    matched = matcher()(image(*size, batch=2), image(*guidance_size, seed=1, batch=2))
    rows, columns = (-(-side // 4) * 4 for side in size)
    assert [tuple(f.shape) for f in matched.features] == [
        (2, c, rows // 2**i, columns // 2**i) for i, c in enumerate(WIDTHS)
    ]
    assert matched.confidence.shape == (2, 1, *size)
    assert matched.confidence.min() >= 0 and matched.confidence.max() <= 1


@pytest.mark.parametrize("block_size", [1, 4, 8])
def test_the_smallest_images_are_matched_by_blocks_larger_than_they_are(block_size):
    matched = matcher(widths=(4, 6, 8, 8), block_size=block_size)(
        image(16, 24), image(16, 24, seed=1)
    )
    assert matched.features[-1].shape[-2:] == (2, 3)
    assert all(f.isfinite().all() for f in matched.features) and matched.confidence.isfinite().all()


@pytest.mark.parametrize("downscale", [1, 2])
def test_a_restorer_of_the_same_downscale_takes_the_features_as_they_are(downscale):
    degraded = image(17, 31)
    matched = matcher(downscale=downscale)(degraded, image(30, 20, seed=1))
    restorer = NAFNet(
        width=4,
        encoder_depths=(1, 1),
        middle_depth=1,
        decoder_depths=(1, 1),
        downscale=downscale,
        guidance_channels=WIDTHS,
    )
    sides = [side + -side % restorer.size_multiple for side in (17, 31)]
    assert tuple(matched.features[0].shape[-2:]) == tuple(side // downscale for side in sides)
    assert restorer(degraded, matched.features).shape == degraded.shape


def test_features_are_weighted_by_confidence():
    model, degraded, guidance = matcher(), image(), image(seed=1)
    matched = model(degraded, guidance)
    rows, columns, score = model.match(model.encode(degraded)[-1], model.encode(guidance)[-1])
    deepest = gather_blocks(model.encode(guidance)[-1], rows, columns, 1)
    torch.testing.assert_close(matched.features[-1], deepest * score[:, None])
    assert score.std() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guidance_of_another_size_is_taken_in_half_precision(dtype):
    matched = matcher().to(dtype)(image().to(dtype), image(64, 100).to(dtype))
    assert matched.confidence.dtype == dtype and matched.confidence.isfinite().all()


# ---- what is found


def test_an_image_matches_itself():
    model, degraded = matcher(), image(48, 72)
    deepest = model.encode(degraded)[-1]
    rows, columns, score = model.match(deepest, deepest)
    expected_rows, expected_columns = places(12, 18)
    found = (rows[0] == expected_rows) & (columns[0] == expected_columns)
    assert interior(found, 1).float().mean() >= 0.9
    torch.testing.assert_close(
        interior(score[0][None], 1)[interior(found, 1)[None]],
        torch.ones(int(interior(found, 1).sum())),
    )
    confidence = model(degraded, degraded).confidence
    assert (
        interior(confidence, 8).mean()
        > 0.99
        > model(degraded, image(48, 72, seed=1)).confidence.mean()
    )


def test_an_image_matched_to_itself_brings_its_own_features():
    model, degraded = matcher(), image(48, 72)
    for moved, own in zip(model(degraded, degraded).features, model.encode(degraded)):
        close = ((moved - own).abs() < 1e-3).all(1)
        assert interior(close, own.shape[-1] // 8).float().mean() >= 0.9


@pytest.mark.parametrize(("down", "right"), [(8, 0), (0, -12), (-4, 16)])
def test_shifted_guidance_is_found_where_it_is(down, right):
    model, scene = matcher(), image(96, 128)
    degraded = scene[..., 24:72, 24:104]
    # The same things, further down and right.
    guidance = scene[..., 24 - down : 72 - down, 24 - right : 104 - right]
    rows, columns, _ = model.match(model.encode(degraded)[-1], model.encode(guidance)[-1])
    here = places(12, 20)
    found = (rows[0] - here[0] == down // 4) & (columns[0] - here[1] == right // 4)
    assert interior(found, 5).float().mean() >= 0.9


def test_a_window_over_everything_finds_the_best_place_of_all():
    query, source = torch.randn(1, 5, 8, 8), torch.randn(1, 5, 8, 8)
    rows, columns, score = matcher(window=4.0).match(query, source)
    patches = [F.normalize(F.unfold(x, 3, padding=1), dim=1) for x in (query, source)]
    best, place = (patches[0].mT @ patches[1]).max(-1)
    torch.testing.assert_close(score.flatten(), best.flatten())
    assert torch.equal(rows.flatten() * 8 + columns.flatten(), place.flatten())


def test_opposite_features_match_with_no_confidence():
    query = torch.ones(1, 5, 8, 12)
    _, _, score = matcher().match(query, -query)
    assert torch.equal(score, torch.zeros(1, 8, 12))


def test_what_is_found_lies_in_the_guidance():
    rows, columns, _ = matcher().match(torch.randn(2, 5, 7, 13), torch.randn(2, 5, 7, 13))
    assert rows.min() >= 0 and rows.max() < 7 and columns.min() >= 0 and columns.max() < 13
    assert rows.shape == columns.shape == (2, 7, 13)


def test_blocks_at_once_change_nothing():
    model, query, source = matcher(), torch.randn(1, 5, 12, 20), torch.randn(1, 5, 12, 20)
    for first, second in zip(
        model._match(query, source), model._match(query, source, blocks_at_once=2)
    ):
        assert torch.equal(first, second)


# ---- its parts, against what they should compute


@pytest.mark.parametrize(("a", "b"), [(3, 5), (4, 4), (1, 6)])
def test_patch_cosine_is_that_of_unfolded_patches(a, b):
    query, source = torch.randn(2, a + 2, a + 2, 5), torch.randn(2, b + 2, b + 2, 5)
    patches = [F.normalize(F.unfold(x.permute(0, 3, 1, 2), 3), dim=1) for x in (query, source)]
    torch.testing.assert_close(patch_cosine(query, source), patches[0].mT @ patches[1])


def test_patch_cosine_of_nothing_is_finite():
    assert torch.equal(
        patch_cosine(torch.zeros(1, 4, 4, 3), torch.randn(1, 5, 5, 3)), torch.zeros(1, 4, 9)
    )


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_gather_blocks_moves_squares(scale):
    features = torch.randn(2, 3, 4 * scale, 5 * scale)
    rows, columns = torch.randint(4, (2, 4, 5)), torch.randint(5, (2, 4, 5))
    expected = torch.empty_like(features)
    for b in range(2):
        for y in range(4):
            for x in range(5):
                top, left = rows[b, y, x] * scale, columns[b, y, x] * scale
                square = features[b, :, top : top + scale, left : left + scale]
                expected[b, :, y * scale : (y + 1) * scale, x * scale : (x + 1) * scale] = square
    assert torch.equal(gather_blocks(features, rows, columns, scale), expected)


def test_squares_repeat_the_border_beyond_it():
    fields = torch.randn(2, 3, 6, 9)
    inside, beyond = cut_squares(
        fields, torch.tensor([1, 0]), torch.tensor([1, 4]), torch.tensor([2, 7]), 3
    )
    assert torch.equal(inside, fields[1, :, 1:4, 2:5].permute(1, 2, 0))
    assert torch.equal(beyond, fields[0][:, [4, 5, 5]][:, :, [7, 8, 8]].permute(1, 2, 0))


# ---- training, and what is refused


@pytest.mark.parametrize("output", ["features", "confidence"])
def test_gradients_reach_the_encoder_through(output):
    model = matcher()
    matched = model(image(), image(seed=1))
    loss = (
        matched.confidence.mean()
        if output == "confidence"
        else sum(f.square().mean() for f in matched.features)
    )
    loss.backward()
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("options", [{"block_size": 0}, {"window": 0.5}])
def test_a_matcher_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match="`block_size` and `window` must be at least 1, got"):
        matcher(**options)


def test_aligned_guidance_stays_where_it_is():
    matcher = GuidanceMatcher(widths=(4, 6), depth=1, aligned=True).eval()
    degraded, guidance = image(16, 24), image(16, 24, seed=1)
    with torch.no_grad():
        matched, (query, source) = (
            matcher(degraded, guidance),
            (matcher.encode(x) for x in (degraded, guidance)),
        )
        patches = [torch.nn.functional.unfold(x[-1], 3, padding=1) for x in (query, source)]
        score = (
            torch.cosine_similarity(*patches, dim=1).clamp(0, 1).unflatten(1, query[-1].shape[-2:])
        )
        torch.testing.assert_close(
            matched.features[-1], source[-1] * score[:, None], atol=1e-5, rtol=1e-4
        )
        same = matcher(degraded, degraded)
    torch.testing.assert_close(same.confidence, torch.ones(1, 1, 16, 24), atol=1e-4, rtol=0)
    assert same.features[0].shape == (1, 4, 16, 24)


@pytest.mark.parametrize("aligned", [True, False])
def test_relative_features_are_what_guidance_shows_differently(aligned):
    torch.manual_seed(0)
    plain = GuidanceMatcher(widths=(4, 6), depth=1, aligned=aligned).eval()
    relative = GuidanceMatcher(widths=(4, 6), depth=1, aligned=aligned, relative=True).eval()
    relative.load_state_dict(plain.state_dict())
    degraded, guidance = image(16, 24), image(16, 24, seed=1)
    with torch.no_grad():
        matched, moved, queries = (
            relative(degraded, guidance),
            plain(degraded, guidance),
            plain.encode(degraded),
        )
        weights = [
            torch.nn.functional.interpolate(
                moved.confidence, f.shape[-2:], mode="bilinear", align_corners=False
            )
            for f in moved.features
        ]
        same = relative(degraded, degraded)
    torch.testing.assert_close(matched.confidence, moved.confidence)
    if aligned:
        assert all(f.abs().max() < 1e-6 for f in same.features)
        finest = matched.features[0] + queries[0] * weights[0]
        torch.testing.assert_close(finest, moved.features[0], atol=1e-4, rtol=1e-3)
    assert all((a - b).abs().max() > 0.01 for a, b in zip(matched.features, moved.features))
