"""Load the embedded checkpoint and save it again, all but its weights, so that it carries the
present code and configs: `python -m tests.tools.refresh_mini`."""

import shutil
import tempfile
from pathlib import Path

from pipelines import MINI, TextGuidedRestorationPipeline

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        TextGuidedRestorationPipeline.from_pretrained(MINI).save_pretrained(folder)
        for path in Path(folder).rglob("*.*"):
            if path.suffix in (".py", ".json") and not path.name.endswith(".index.json"):
                shutil.copyfile(path, Path(MINI) / path.relative_to(folder))
