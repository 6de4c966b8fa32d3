"""What frozen networks make of samples is computed once, survives a crash and is served in full, in
another order each time."""

from typing import NamedTuple

import pytest
import torch
from diffusers import DDIMScheduler
from torch.utils.data import DataLoader, Dataset

from textir.data.cache import encode_samples, shard_file
from textir.data.samples import draw_noise, near_timesteps


class Process(NamedTuple):
    """One of the processes of a run."""

    process_index: int = 0
    num_processes: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def wait_for_everyone(self) -> None:
        pass


class Numbers(Dataset):
    """Sample `index` is its number."""

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"number": torch.tensor(float(index)), "index": torch.tensor(index)}


class Encoder:
    """Keeps book of the samples that it encoded; breaks down when it comes to sample `until`."""

    def __init__(self, until: float = float("inf")):
        self.until, self.seen = until, []

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if max(batch["index"]) >= self.until:
            raise RuntimeError("power cut")
        self.seen += batch["index"].tolist()
        number = batch["number"]
        return {
            "number": number,
            "tokens": number[:, None, None] / 4 + torch.arange(6.0).reshape(2, 3),
        }


def encode(folder, encoder=None, count=10, made_with=None, process=Process(), workers=0):
    made_with = made_with or {"model": "tiny", "seed": 0}
    return encode_samples(
        Numbers(), encoder or Encoder(), count, folder, made_with, process, 3, workers, shard_size=4
    )


def numbers(samples, turn: int, count: int = 10) -> list[int]:
    return [int(samples[index]["number"]) for index in range(turn * count, (turn + 1) * count)]


# ---- what is served


def test_items_are_what_the_encoder_made_of_their_sample(tmp_path):
    samples = encode(tmp_path)
    for index in range(25):
        item = samples[index]
        assert item.keys() == {"number", "tokens", "index"}
        assert int(item["index"]) == index and item["number"].shape == ()
        assert item["tokens"].dtype == torch.float32
        assert torch.equal(item["tokens"], item["number"] / 4 + torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize("count", [1, 3, 4, 8, 10])
def test_each_pass_serves_every_sample_once(count, tmp_path):
    samples = encode(tmp_path, count=count)
    for turn in (0, 1, 2, 40):
        assert sorted(numbers(samples, turn, count)) == list(range(count))


def test_passes_and_seeds_differ_in_their_order(tmp_path):
    orders = [
        tuple(numbers(encode(tmp_path, made_with={"seed": seed}), turn))
        for seed in (0, 1, 20261123)
        for turn in range(4)
    ]
    assert len(set(orders)) == len(orders)


def test_an_item_depends_on_its_index_alone(tmp_path):
    samples = encode(tmp_path)
    forwards = [int(samples[index]["number"]) for index in range(30)]
    backwards = [int(encode(tmp_path)[index]["number"]) for index in reversed(range(30))]
    assert backwards == forwards[::-1]
    torch.manual_seed(99)
    assert [int(samples[index]["number"]) for index in (17, 3, 29)] == [
        forwards[17],
        forwards[3],
        forwards[29],
    ]


def test_workers_encode_and_serve_the_same(tmp_path):
    alone, helped = encode(tmp_path / "alone"), encode(tmp_path / "helped", count=10, workers=1)
    for shard in range(3):
        assert (
            shard_file(alone.folder, shard).read_bytes()
            == shard_file(helped.folder, shard).read_bytes()
        )
    batches = [
        list(DataLoader(alone, 5, sampler=range(7, 22), num_workers=workers)) for workers in (0, 1)
    ]
    assert all(
        torch.equal(first[key], second[key]) for first, second in zip(*batches) for key in first
    )


# ---- what is computed


def test_every_sample_is_encoded_once_and_never_again(tmp_path):
    encoder = Encoder()
    encode(tmp_path, encoder)
    assert encoder.seen == list(range(10))
    again = Encoder()
    samples = encode(tmp_path, again)
    assert again.seen == [] and sorted(numbers(samples, 0)) == list(range(10))


def test_a_run_that_broke_down_goes_on_with_the_first_unfinished_file(tmp_path):
    broken = Encoder(until=6)  # in the middle of the second of three files
    with pytest.raises(RuntimeError, match="power cut"):
        encode(tmp_path, broken)
    resumed = Encoder()
    samples = encode(tmp_path, resumed)
    assert resumed.seen == [4, 5, 6, 7, 8, 9]
    assert sorted(numbers(samples, 0)) == list(range(10))


def test_a_lost_file_is_made_again_and_no_other(tmp_path):
    before = encode(tmp_path)
    content = shard_file(before.folder, 1).read_bytes()
    shard_file(before.folder, 1).unlink()
    encoder = Encoder()
    encode(tmp_path, encoder)
    assert encoder.seen == [4, 5, 6, 7] and shard_file(before.folder, 1).read_bytes() == content


def test_half_written_files_do_not_count(tmp_path):
    folder = encode(tmp_path).folder
    whole = shard_file(folder, 2)
    whole.with_suffix(".part4711").write_bytes(whole.read_bytes()[:20])
    whole.unlink()
    encoder = Encoder()
    samples = encode(tmp_path, encoder)
    assert encoder.seen == [8, 9]
    assert sorted(numbers(samples, 0)) == list(range(10))


def test_no_half_written_file_stays_behind(tmp_path):
    folder = encode(tmp_path).folder
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{shard:05d}.safetensors" for shard in range(3)
    ]


def test_each_setting_has_a_cache_of_its_own(tmp_path):
    settings = [
        {"model": "a", "seed": 0},
        {"model": "b", "seed": 0},
        {"model": "a", "seed": 1},
        {"seed": 0, "model": "a"},
    ]
    folders = [encode(tmp_path, made_with=setting).folder for setting in settings]
    assert len(set(folders[:3])) == 3 and folders[3] == folders[0]
    assert encode(tmp_path, count=9, made_with=settings[0]).folder not in folders
    assert all(folder.parent == tmp_path for folder in folders)
    encoder = Encoder()
    encode(tmp_path, encoder, made_with={"model": "c", "seed": 0})
    assert encoder.seen == list(range(10))


def test_processes_share_the_files_and_serve_the_same(tmp_path):
    encoders = [Encoder(), Encoder()]
    both = [encode(tmp_path, encoder, process=Process(i, 2)) for i, encoder in enumerate(encoders)]
    assert encoders[0].seen == [0, 1, 2, 3, 8, 9] and encoders[1].seen == [4, 5, 6, 7]
    assert numbers(both[0], 1) == numbers(both[1], 1) == numbers(encode(tmp_path / "alone"), 1)


def test_nothing_is_recorded_for_gradients(tmp_path):
    weight = torch.ones(1, requires_grad=True)

    def learnt(batch):
        made = batch["number"] * weight
        assert not made.requires_grad
        return {"number": made}

    assert not encode(tmp_path, learnt)[0]["number"].requires_grad


# ---- noise


def test_noise_and_timestep_depend_on_seed_and_index_alone():
    scheduler, shape = DDIMScheduler(), (4, 6, 10)
    noise, steps = draw_noise(torch.tensor([7, 0, 123_456]), shape, scheduler, 5, "cpu")
    assert noise.shape == (3, *shape) and steps.shape == (3,) and steps.dtype == torch.int64
    torch.manual_seed(99)
    for place, index in enumerate((7, 0, 123_456)):
        alone = draw_noise(torch.tensor([index]), shape, scheduler, 5, "cpu")
        assert torch.equal(alone[0][0], noise[place]) and alone[1][0] == steps[place]


def test_noise_of_other_samples_and_seeds_is_other_noise():
    scheduler, index = DDIMScheduler(), torch.arange(20)
    drawn = [draw_noise(index, (4, 6, 10), scheduler, seed, "cpu")[0] for seed in (0, 1, 2)]
    assert len({sample.numpy().tobytes() for noise in drawn for sample in noise}) == 60


def test_noise_is_normal_and_timesteps_are_uniform_over_those_of_the_scheduler():
    noise, steps = draw_noise(
        torch.arange(2000), (2, 3, 5), DDIMScheduler(num_train_timesteps=50), 0, "cpu"
    )
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    counts = torch.bincount(steps, minlength=50)
    # 40 expected, deviation 6.3.
    assert len(counts) == 50 and counts.min() > 15 and counts.max() < 75


def test_timesteps_near_a_strength_lie_between_half_and_one_and_a_half_of_it():
    chance = torch.linspace(0, 1, 101)
    steps = near_timesteps(chance, 0.2, DDIMScheduler())
    assert (
        steps.dtype == torch.int64
        and (steps.min(), steps.max()) == (100, 300)
        and (steps.diff() >= 0).all()
    )
    assert near_timesteps(chance, 1.0, DDIMScheduler()).max() == 999
    assert near_timesteps(chance, 1e-4, DDIMScheduler()).min() == 1
