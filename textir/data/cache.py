"""What the frozen networks make of training samples, computed once where the samples repeat: image
tokens, pseudo-words, latents."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from textir.data.samples import sample_generator


class EncodedSamples(Dataset):
    """The first samples of a stream, encoded and kept on disk; served again and again, in another
    order each time.

    Args:
        folder: of the files that `encode_samples` wrote.
        count: number of samples.
        shard_size: samples of a file.
        seed: of the orders.

    Item `index` has the tensors that were kept and its `index`, so that noise drawn by index
    differs from pass to pass.
    """

    def __init__(self, folder: Path, count: int, shard_size: int, seed: int = 0):
        self.folder, self.count, self.shard_size, self.seed = Path(folder), count, shard_size, seed
        self.order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        turn, at = divmod(index, self.count)
        if self.order is None or self.order[0] != turn:
            self.order = (
                turn,
                torch.randperm(self.count, generator=sample_generator(self.seed, turn)),
            )
        shard, row = divmod(int(self.order[1][at]), self.shard_size)
        with safe_open(
            shard_file(self.folder, shard), "pt"
        ) as file:  # memory-mapped: the system keeps hot pages
            tensors = {name: file.get_slice(name)[row].float() for name in file.keys()}  # noqa: SIM118
        return {**tensors, "index": torch.tensor(index)}


@torch.no_grad()
def encode_samples(
    samples: Dataset,
    encode: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    count: int,
    folder: str | Path,
    made_with: dict,
    accelerator,
    batch_size: int = 4,
    workers: int = 0,
    shard_size: int = 256,
) -> EncodedSamples:
    """Encode the first `count` samples once; what an earlier run has finished is kept, processes
    share the work.

    Args:
        samples: the stream.
        encode: turns a batch into tensors whose first dimension is the batch; frozen networks only.
        count: number of samples.
        folder: where the cache lies; each setting has a sub-folder of its own.
        made_with: the settings that the tensors depend on.
        accelerator: of the run.
        batch_size: samples at a time.
        workers: processes that prepare samples.
        shard_size: samples of a file.
    """
    digest = hashlib.sha256(
        json.dumps({**made_with, "count": count, "shard_size": shard_size}, sort_keys=True).encode()
    ).hexdigest()
    folder = Path(folder) / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(-(-count // shard_size))
    mine = shards[accelerator.process_index :: accelerator.num_processes]
    missing = [shard for shard in mine if not shard_file(folder, shard).exists()]
    silent = None if accelerator.is_main_process else True
    for shard in tqdm(missing, "encoding", disable=silent, leave=False):
        rows = range(shard * shard_size, min((shard + 1) * shard_size, count))
        loader = DataLoader(samples, batch_size, sampler=rows, num_workers=workers)
        parts: dict[str, list[torch.Tensor]] = {}
        for batch in loader:
            for name, value in encode(to_device(batch, accelerator.device)).items():
                parts.setdefault(name, []).append(value.to(torch.float16).cpu())
        whole = {name: torch.cat(values).contiguous() for name, values in parts.items()}
        partial = shard_file(folder, shard).with_suffix(f".part{os.getpid()}")
        save_file(whole, partial)
        os.replace(partial, shard_file(folder, shard))
    accelerator.wait_for_everyone()
    return EncodedSamples(folder, count, shard_size, made_with.get("seed", 0))


def shard_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.safetensors"


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: value.to(device) for name, value in batch.items()}
