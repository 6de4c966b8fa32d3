"""Every test runs offline; tests marked `slow` only with `--run-slow`."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ["OMP_NUM_THREADS"] = (
    "1"  # whatever the shell says: tiny networks only wait, and forks divide their sums differently
)

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--run-slow", action="store_true", help="also run tests that need long CPU time"
    )


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.timeout(0))  # they may take hours
            if not config.getoption("--run-slow"):
                item.add_marker(pytest.mark.skip(reason="slow: pass --run-slow"))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
