"""Pipelines in diffusers format, and the checkpoint that comes with the package.

from pipelines import MINI, TextGuidedRestorationPipeline
pipe = TextGuidedRestorationPipeline.from_pretrained(MINI)
"""

from pathlib import Path

import textir
from pipelines.pipeline_text_guided_restoration import RestorationOutput, TextGuidedRestorationPipeline
from textir import models

MINI = str(Path(textir.__file__).parent / "checkpoints" / "mini")
"""Folder of the embedded checkpoint."""

# Repositories load into these classes; none of their own code runs.
TextGuidedRestorationPipeline._own_components = {name: getattr(models, name).__module__ for name in models.__all__}

__all__ = ["MINI", "RestorationOutput", "TextGuidedRestorationPipeline"]
