"""Losses are what their formula says; checkpoints are whole or absent, found in the order of their steps, and load again."""

import math

import pytest
import torch
from accelerate import Accelerator

from tests.tiny import image
from textir.training import checkpoint_step, find_checkpoint, list_checkpoints, restoration_loss, save_checkpoint


def learner(seed: int = 0):
    """An accelerator with a tiny model and its optimizer, one step into training."""
    torch.manual_seed(seed)
    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(3, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    accelerator.backward(model(torch.randn(4, 3)).square().mean())
    optimizer.step()
    optimizer.zero_grad()
    return accelerator, model, optimizer


# ---- losses


def test_l1_is_the_mean_distance():
    restored, clean = image(batch=2), image(batch=2, seed=1)
    assert restoration_loss(restored, clean).item() == pytest.approx((restored - clean).abs().mean().item())


@pytest.mark.parametrize("error", [0.1, 0.3])
def test_the_psnr_loss_is_the_logarithm_of_each_images_error(error):
    clean = torch.full((2, 3, 16, 24), 0.5)
    restored = clean + torch.tensor([error, error / 10])[:, None, None, None]
    expected = sum(math.log(e**2 + 1e-4) for e in (error, error / 10)) / 4
    assert restoration_loss(restored, clean, "psnr").item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["l1", "psnr"])
def test_a_loss_falls_with_the_error_and_has_a_gradient(kind):
    clean, noise = image(batch=2), image(batch=2, seed=1) - 0.5
    near, far = (restoration_loss(clean + scale * noise, clean, kind) for scale in (0.1, 0.2))
    assert near.shape == () and near < far
    restored = (clean + noise).requires_grad_()
    restoration_loss(restored, clean, kind).backward()
    assert restored.grad.isfinite().all() and (restored.grad != 0).any()


@pytest.mark.parametrize("kind", ["l1", "psnr"])
def test_a_perfect_image_has_a_finite_loss_and_gradient(kind):
    restored = image().requires_grad_()
    loss = restoration_loss(restored, image(), kind)
    loss.backward()
    assert loss.isfinite() and restored.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["l1", "psnr"])
def test_a_loss_is_taken_in_single_precision(kind):
    restored, clean = image().bfloat16(), image(seed=1).bfloat16()
    loss = restoration_loss(restored, clean, kind)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, restoration_loss(restored.float(), clean.float(), kind))


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="`kind` must be l1 or psnr, got 'l2'"):
        restoration_loss(image(), image(), "l2")


# ---- checkpoints


def test_a_checkpoint_brings_the_whole_state_back(tmp_path):
    accelerator, model, optimizer = learner(seed=0)
    folder = save_checkpoint(accelerator, tmp_path, 7)
    assert folder == tmp_path / "checkpoint-7" and checkpoint_step(folder) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-7"]
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    moment = optimizer.state_dict()["state"][0]["exp_avg"].clone()
    expected = torch.rand(2)

    other, model, optimizer = learner(seed=1)
    assert not torch.equal(model.weight, saved["weight"])
    other.load_state(str(find_checkpoint(tmp_path, "latest")))
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moment)
    assert torch.equal(torch.rand(2), expected)


def test_checkpoints_are_ordered_by_their_numbers(tmp_path):
    accelerator, *_ = learner()
    for step in (100, 9, 10):
        save_checkpoint(accelerator, tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10", "checkpoint-100"]
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-100"


def test_other_files_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-best", "checkpoint-", "old-checkpoint-3", ".checkpoint-4.part", "checkpoint-5x"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-6").write_text("a file")
    assert list_checkpoints(tmp_path) == []
    assert find_checkpoint(tmp_path, "latest") is None


@pytest.mark.parametrize(("limit", "kept"), [(1, [30]), (2, [20, 30]), (5, [5, 20, 30]), (None, [5, 20, 30])])
def test_the_oldest_checkpoints_make_room(tmp_path, limit, kept):
    accelerator, *_ = learner()
    for step in (5, 20, 30):
        save_checkpoint(accelerator, tmp_path, step, total_limit=limit)
    assert [checkpoint_step(path) for path in list_checkpoints(tmp_path)] == kept
    assert len(list(tmp_path.iterdir())) == len(kept)


def test_saving_a_step_again_replaces_its_checkpoint(tmp_path):
    accelerator, model, _ = learner()
    save_checkpoint(accelerator, tmp_path, 3)
    (tmp_path / "checkpoint-3" / "stale.txt").write_text("from before")
    with torch.no_grad():
        model.weight.fill_(0.25)
    save_checkpoint(accelerator, tmp_path, 3)
    assert not (tmp_path / "checkpoint-3" / "stale.txt").exists()
    with torch.no_grad():
        model.weight.zero_()
    accelerator.load_state(str(tmp_path / "checkpoint-3"))
    assert (model.weight == 0.25).all()


class Unwritable:
    """State that cannot be saved, as on a full disk."""

    def state_dict(self):
        raise OSError("No space left on device")

    def load_state_dict(self, state):
        pass


def test_a_save_that_fails_leaves_the_older_checkpoint_the_latest(tmp_path):
    accelerator, *_ = learner()
    save_checkpoint(accelerator, tmp_path, 1)
    accelerator.register_for_checkpointing(Unwritable())
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(accelerator, tmp_path, 2, total_limit=1)
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-1"
    assert (tmp_path / "checkpoint-1" / "optimizer.bin").is_file()


def test_without_resuming_there_is_no_checkpoint(tmp_path):
    accelerator, *_ = learner()
    save_checkpoint(accelerator, tmp_path, 1)
    assert find_checkpoint(tmp_path, None) is None
    assert find_checkpoint(tmp_path / "not yet made", "latest") is None


def test_a_checkpoint_can_be_named(tmp_path):
    accelerator, *_ = learner()
    for step in (1, 2):
        save_checkpoint(accelerator, tmp_path, step)
    assert find_checkpoint(tmp_path / "elsewhere", str(tmp_path / "checkpoint-1")) == tmp_path / "checkpoint-1"


@pytest.mark.parametrize("name", ["checkpoint-8", "weights", "checkpoint-empty", "checkpoint-0"])
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path, name):
    for folder in ("weights", "checkpoint-empty", "checkpoint-0"):
        (tmp_path / folder).mkdir()
    (tmp_path / "weights" / "optimizer.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} is not a checkpoint: a folder `checkpoint-STEP` with optimizer.bin"):
        find_checkpoint(tmp_path, str(tmp_path / name))
