"""Load the embedded checkpoints and save them again, all but their weights, so that they carry the
present code and configs: `python -m tests.tools.refresh_mini`."""

import shutil
import tempfile
from pathlib import Path

from pipelines import (
    MINI,
    MINI_TEXTIR,
    TextEditableRestorationPipeline,
    TextGuidedRestorationPipeline,
)

EMBEDDED = {MINI: TextGuidedRestorationPipeline, MINI_TEXTIR: TextEditableRestorationPipeline}

if __name__ == "__main__":
    for place, kind in EMBEDDED.items():
        with tempfile.TemporaryDirectory() as folder:
            kind.from_pretrained(place).save_pretrained(folder)
            for path in Path(folder).rglob("*.*"):
                if path.suffix in (".py", ".json") and not path.name.endswith(".index.json"):
                    shutil.copyfile(path, Path(place) / path.relative_to(folder))
