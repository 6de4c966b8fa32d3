"""What only a GPU can show: these tests run where CUDA is and skip elsewhere. Each names the fault
that it would find again."""

import pytest
import torch

from pipelines import load
from tests.tools import tiny
from tests.train_lora import run as train
from tests.train_lora import small_restorer, write_photos

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def photo():
    return tiny.image(192, 256)


def restored(pipe, image, **options):
    return pipe(image, output_type="pt", **options).images.float().cpu()


def test_cuda_restores_like_the_cpu(photo):
    there, here = restored(load(device="cuda"), photo), restored(load(device="cpu"), photo)
    assert (there - here).abs().max() < 2e-3


def test_a_photo_of_twelve_megapixels_is_restored():
    """Antialiased bicubic reduction by a large factor has no kernel on CUDA: "Provided
    interpolation parameters can not be handled"."""
    image = tiny.image(3000, 4000)
    assert (
        restored(load(device="cuda"), image, tile=1024, return_influence=False).shape == image.shape
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_hardly_moves_pixels(photo, dtype):
    """The restorer stays in single precision; in half it moved pixels by up to 0.04."""
    whole, half = (restored(load(device="cuda", dtype=name), photo) for name in ("float32", dtype))
    assert (whole - half).abs().max() < 0.01


def test_sequential_offload_reads_the_vocabulary(photo):
    """`nearest_tokens` read a table that lies on the meta device: "Cannot copy out of meta
    tensor"."""
    expected = restored(load(device="cuda"), photo)
    pipe = load(device="cpu")
    pipe.enable_sequential_cpu_offload()
    assert (restored(pipe, photo) - expected).abs().max() < 2e-3


def test_training_with_averaged_weights_resumes(tmp_path):
    """The averaged weights stayed on the CPU after loading: "Expected all tensors to be on the same
    device"."""
    data = {
        "train_data_dir": [write_photos(tmp_path / "photos")],
        "restorer_config": small_restorer(),
    }
    options = {**data, "use_ema": True, "checkpointing_steps": 1}
    train("train_restorer", tmp_path / "run", max_train_steps=1, **options)
    train(
        "train_restorer",
        tmp_path / "run",
        max_train_steps=2,
        resume_from_checkpoint="latest",
        **options,
    )
