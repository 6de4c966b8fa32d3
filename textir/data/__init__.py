"""What networks learn from: photos, published data sets, samples, and what is computed once."""

from textir.data.cache import EncodedSamples, encode_samples, to_device
from textir.data.layouts import BENCHMARKS, Benchmark, Entry, Layout, find_benchmark
from textir.data.photos import HubPhotos, Images, Photos, entry_names, find_entries, parse_source
from textir.data.samples import (
    Sampler,
    StreamedCrops,
    TrainingCrops,
    draw_noise,
    near_timesteps,
    sample_generator,
    severities,
)

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "EncodedSamples",
    "Entry",
    "HubPhotos",
    "Images",
    "Layout",
    "Photos",
    "Sampler",
    "StreamedCrops",
    "TrainingCrops",
    "draw_noise",
    "encode_samples",
    "entry_names",
    "find_benchmark",
    "find_entries",
    "near_timesteps",
    "parse_source",
    "sample_generator",
    "severities",
    "to_device",
]
