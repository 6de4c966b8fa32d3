"""Load the embedded checkpoint and save it again, so that it carries the present code: `python -m tests.refresh_mini`."""

import shutil
import tempfile
from pathlib import Path

import torch

from pipelines import MINI, TextGuidedRestorationPipeline

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        TextGuidedRestorationPipeline.from_pretrained(MINI, dtype=torch.float16).save_pretrained(folder)
        for path in Path(folder).rglob("*"):
            if path.is_file():
                shutil.copyfile(path, Path(MINI) / path.relative_to(folder))
