"""Guidance painted in the loop: what it shows, how it errs, and that only what guidance adds
trains."""

from pathlib import Path

import pytest
import torch

from pipelines import TextGuidedRestorationPipeline
from tests.tools import tiny
from tests.train_lora import (
    make_config,
    run,
    small_restorer,
    trained,
    write_chain,
    write_photos,
)
from train_lora.mini import train_fusion

load = TextGuidedRestorationPipeline.from_pretrained


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> str:
    return write_chain(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> str:
    return write_photos(tmp_path_factory.mktemp("photos"))


def test_guidance_is_painted_in_the_loop(tmp_path, chain, photos):
    start = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "view": 36,
        "matcher_widths": [4, 6, 8],
        "checkpointing_steps": 2,
    }
    output = run("mini.train_fusion", tmp_path, **start)
    before, after = load(chain), load(output / "pipeline")
    assert after.matcher is not None and before.matcher is None
    for part in ("image_encoder", "mapper", "cleaner", "text_encoder", "unet", "vae"):
        old, new = (getattr(pipe, part).state_dict() for pipe in (before, after))
        assert all(torch.equal(old[name], new[name]) for name in old), part
    assert {name.split(".")[0] for name in trained(output / "checkpoint-2")} == {
        "restorer",
        "matcher",
    }


def test_a_crop_and_its_guidance_show_the_same_place():
    class Echo:
        def guidance_shape(self, height, width):
            return height, width

        def guide(self, image, guidance, **options):
            return type("Output", (), {"images": image})

    config = make_config("mini.train_fusion", Path("x"), train_data_dir=["x"], view=48)
    view = torch.rand(3, 3, 48, 48)
    batch = {"index": torch.arange(3), "degraded": view, "clean": view / 2}
    cut = train_fusion.cut(train_fusion.paint(Echo(), batch, config), config)
    assert cut["degraded"].shape == (3, 3, 32, 32)
    assert torch.allclose(cut["guidance"], cut["degraded"], atol=1e-6) and torch.equal(
        cut["clean"], cut["degraded"] / 2
    )
    again = train_fusion.cut(train_fusion.paint(Echo(), batch, config), config)
    assert torch.equal(cut["degraded"], again["degraded"])


def test_a_painting_serves_several_crops():
    config = make_config(
        "mini.train_fusion", Path("x"), train_data_dir=["x"], view=96, crops_per_view=3
    )
    view = torch.arange(96 * 96.0).reshape(1, 1, 96, 96).repeat(2, 3, 1, 1)
    batch = {
        "index": torch.tensor([4, 5]),
        "degraded": view,
        "clean": view / 2,
        "guidance": view + 1,
    }
    crops = train_fusion.cut(batch, config)
    assert crops["degraded"].shape == (6, 3, 32, 32) and crops["index"].tolist() == [
        4,
        4,
        4,
        5,
        5,
        5,
    ]
    assert torch.equal(crops["clean"], crops["degraded"] / 2) and torch.equal(
        crops["guidance"], crops["degraded"] + 1
    )
    assert (crops["degraded"].diff(dim=-1) == 1).all() and (
        crops["degraded"].diff(dim=-2) == 96
    ).all()
    assert len(crops["degraded"][:, 0, 0, 0].unique()) == 6


def test_batches_of_crops_of_several_sides_cost_alike():
    knobs = {"view": 96, "crops_per_view": 3, "crop_sides": [32, 48, 96]}
    config = make_config("mini.train_fusion", Path("x"), train_data_dir=["x"], **knobs)
    view = torch.arange(96 * 96.0).reshape(1, 1, 96, 96).repeat(4, 3, 1, 1)
    counts = {}
    for start in range(0, 48, 4):
        index = torch.arange(start, start + 4)
        crops = train_fusion.cut(
            {"index": index, "degraded": view, "clean": view / 2, "guidance": view + 1}, config
        )
        count, _, side, _ = crops["degraded"].shape
        counts[side] = count
        assert len(crops["index"]) == count and set(crops["index"].tolist()) == set(
            index.tolist()[:count]
        )
        assert torch.equal(crops["clean"], crops["degraded"] / 2) and torch.equal(
            crops["guidance"], crops["degraded"] + 1
        )
    assert counts == {32: 12, 48: 5, 96: 1}


class Brighter:
    """Stands for a painter that makes everything brighter by `by`."""

    by = 0.2
    painted = 0

    def guidance_shape(self, height, width):
        return height // 2, width // 2

    def guide(self, image, guidance, **options):
        self.painted += len(image)
        small = torch.nn.functional.interpolate(image, scale_factor=0.5, mode="area")
        return type("Output", (), {"images": small + self.by})


def flat_batch(count: int = 64) -> dict[str, torch.Tensor]:
    degraded = torch.full((count, 3, 48, 48), 0.4)
    return {"index": torch.arange(count), "degraded": degraded, "clean": degraded + 0.2}


@pytest.mark.parametrize("true_share", [0.0, 1.0])
@pytest.mark.parametrize(("correction", "errors"), [(0.2, 0.2236), (0.0, 0.1)])
def test_guidance_errs_by_a_share_of_what_it_corrects(true_share, correction, errors):
    knobs = {"view": 48, "guidance_jitter": 0.2, "true_share": true_share}
    config, painter, batch = (
        make_config("mini.train_fusion", Path("x"), train_data_dir=["x"], **knobs),
        Brighter(),
        flat_batch(),
    )
    painter.by, batch["clean"] = correction, batch["degraded"] + correction
    made = train_fusion.paint(painter, batch, config)["guidance"] - 0.4
    # The fields add up to about 1, the spread of how wrong guidance is to another 1.2.
    assert (made - correction).square().mean().sqrt() == pytest.approx(0.2 * 1.2 * errors, rel=0.3)
    assert made.mean() == pytest.approx(correction, abs=0.02)
    assert made.diff(dim=-1).abs().mean() < 0.1 * (made - correction).abs().mean()  # smooth
    # In all, and from place to place.
    assert made.mean((1, 2, 3)).std() > 0.08 * errors and made.std((2, 3)).mean() > 0.04 * errors
    assert torch.equal(made, train_fusion.paint(painter, batch, config)["guidance"] - 0.4)


@pytest.mark.parametrize(("true_share", "painted"), [(0.0, 64), (1.0, 0)])
def test_only_what_is_not_true_is_painted(true_share, painted):
    config = make_config(
        "mini.train_fusion", Path("x"), train_data_dir=["x"], view=48, true_share=true_share
    )
    painter, batch = Brighter(), flat_batch()
    painter.by = 0.1
    guidance = train_fusion.paint(painter, batch, config)["guidance"]
    torch.testing.assert_close(guidance, batch["clean"] if true_share else batch["degraded"] + 0.1)
    assert painter.painted == painted


def test_some_guidance_is_true_and_the_rest_painted_of_its_own_photo():
    knobs = {"view": 48, "true_share": 0.5}
    config = make_config("mini.train_fusion", Path("x"), train_data_dir=["x"], **knobs)
    painter, batch = Brighter(), flat_batch()
    painter.by = 0.1
    batch["degraded"] = batch["degraded"] * torch.linspace(0.5, 1, 64)[:, None, None, None]
    guidance = train_fusion.paint(painter, batch, config)["guidance"].mean((1, 2, 3))
    clean, painted = batch["clean"].mean((1, 2, 3)), batch["degraded"].mean((1, 2, 3)) + 0.1
    is_true, is_painted = (guidance - clean).abs() < 1e-5, (guidance - painted).abs() < 1e-5
    assert (is_true | is_painted).all() and 16 < is_true.sum() < 48


def test_true_guidance_with_errors_is_no_more_detailed_than_paintings():
    config = make_config(
        "mini.train_fusion",
        Path("x"),
        train_data_dir=["x"],
        view=128,
        true_share=1.0,
        guidance_jitter=1e-6,
    )
    batch = {"index": torch.arange(4), "degraded": torch.zeros(4, 3, 128, 128)}
    batch["clean"] = torch.rand(4, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    blurred = train_fusion.paint(Brighter(), batch, config)["guidance"]
    sharp = train_fusion.paint(
        Brighter(),
        batch,
        make_config("mini.train_fusion", Path("x"), train_data_dir=["x"], view=128, true_share=1.0),
    )
    assert (blurred.std((1, 2, 3)) < 0.75 * sharp["guidance"].std((1, 2, 3))).all()
    assert torch.allclose(blurred.mean((1, 2, 3)), batch["clean"].mean((1, 2, 3)), atol=0.01)


def test_a_checkpoint_says_what_its_guidance_is_good_for(tmp_path, chain, photos):
    start = {
        "train_data_dir": [photos],
        "view": 36,
        "matcher_widths": [4, 6, 8],
        "pretrained_model_name_or_path": chain,
    }
    said = run(
        "mini.train_fusion", tmp_path / "said", **start, guided_degradations=["haze", "lowlight"]
    )
    assert load(said / "pipeline").config.guided_degradations == ["haze", "lowlight"]
    start |= {"pretrained_model_name_or_path": str(said / "pipeline"), "matcher_widths": []}
    kept = run("mini.train_fusion", tmp_path / "kept", **start)
    assert load(kept / "pipeline").config.guided_degradations == ["haze", "lowlight"]
    anew = run("mini.train_fusion", tmp_path / "anew", **start, guided_degradations=["all"])
    assert load(anew / "pipeline").config.guided_degradations is None


def test_painting_in_the_loop_needs_a_chain(tmp_path, photos):
    with pytest.raises(ValueError, match="This stage needs image_encoder, mapper"):
        run(
            "mini.train_fusion",
            tmp_path,
            train_data_dir=[photos],
            view=36,
            restorer_config=small_restorer(),
        )


def test_only_what_guidance_adds_trains_on_a_frozen_backbone(tmp_path, chain, photos):
    start = {
        "pretrained_model_name_or_path": chain,
        "train_data_dir": [photos],
        "view": 36,
        "matcher_widths": [4, 6, 8],
    }
    output = run("mini.train_fusion", tmp_path, **start, trains="guidance", checkpointing_steps=2)
    names = {name for name in trained(output / "checkpoint-2") if name.startswith("restorer.")}
    assert names and all("fusion" in name for name in names)
    before, after = load(chain), load(output / "pipeline")
    old, new = before.restorer.state_dict(), after.restorer.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"view": 64, "crop_sides": [32, 65]},
            r"`--crop_sides` must lie between `--resolution` and `--view`, got \[32, 65\]",
        ),
        ({"guidance_jitter": -0.2}, "`--guidance_jitter` must be at least 0, got -0.2"),
        ({"true_share": 1.2}, "`--true_share` must lie in 0 to 1, got 1.2"),
        ({"view": 16}, "`--view` must be at least the one `--resolution`"),
        ({"crops_per_view": 0}, "`--crops_per_view` must be at least 1, got 0"),
        (
            {"view": 64, "guidance": False},
            "`--view` must be at least the one `--resolution`, with `--guidance`",
        ),
        (
            {"guided_degradations": ["fog"]},
            "`--guided_degradations` takes all, or some of .* got fog",
        ),
        ({"guided_degradations": ["haze:2"]}, "got haze:2"),
        ({"guided_degradations": ["haze"], "rank": 4}, "belongs to a whole checkpoint"),
    ],
)
def test_a_view_that_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_config("mini.train_fusion", Path("x"), train_data_dir=["x"], **wrong)


def test_new_guidance_replaces_what_the_checkpoint_has_and_leaves_the_backbone(tmp_path, photos):
    start = write_chain(
        tmp_path / "chain",
        restorer=tiny.restorer(open_gates=True),
        matcher=tiny.components()["matcher"],
    )
    output = run(
        "mini.train_fusion",
        tmp_path,
        pretrained_model_name_or_path=start,
        train_data_dir=[photos],
        view=36,
        trains="guidance",
        new_guidance=True,
        fusion="decoder",
        relative=True,
        matcher_widths=[4, 6, 10],
    )
    before, after = load(start), load(output / "pipeline")
    widths = after.matcher.config.widths
    assert after.matcher.config.relative and widths == [4, 6, 10] != before.matcher.config.widths
    assert after.restorer.config.fusion == "decoder" and not len(after.restorer.encoder_fusions)
    old, new = before.restorer.state_dict(), after.restorer.state_dict()
    kept = [name for name in new if "fusion" not in name]
    assert kept and all(torch.equal(new[name], old[name]) for name in kept)
    assert all((value != 0).any() for name, value in new.items() if name.endswith("alpha"))


def test_the_shape_of_a_matcher_is_not_changed_in_passing(tmp_path, photos):
    start = write_chain(
        tmp_path / "chain", restorer=tiny.restorer(), matcher=tiny.components()["matcher"]
    )
    with pytest.raises(ValueError, match="add `--new_guidance`"):
        run(
            "mini.train_fusion",
            tmp_path,
            pretrained_model_name_or_path=start,
            train_data_dir=[photos],
            view=36,
            relative=True,
        )
