"""Pipelines in diffusers format, and the checkpoint that comes with the package.

from pipelines import load
pipe = load("mini")
"""

from pipelines.loading import MINI, MINI_TEXTIR, load, load_editor
from pipelines.pipeline_text_editable_restoration import TextEditableRestorationPipeline
from pipelines.pipeline_text_guided_restoration import (
    RestorationOutput,
    TextGuidedRestorationPipeline,
)
from textir import models

# Repositories load into these classes; none of their own code runs.
for kind in (TextGuidedRestorationPipeline, TextEditableRestorationPipeline):
    # Diffusers takes classes from modules that are imported already, so every file is.
    kind._own_components = {name: getattr(models, name).__module__ for name in models.__all__}
TextGuidedRestorationPipeline._embedded = {"mini": MINI}
TextEditableRestorationPipeline._embedded = {"mini-textir": MINI_TEXTIR}
TextGuidedRestorationPipeline._default_instruction_reader = models.InstructionReader()

__all__ = [
    "MINI",
    "MINI_TEXTIR",
    "RestorationOutput",
    "TextEditableRestorationPipeline",
    "TextGuidedRestorationPipeline",
    "load",
    "load_editor",
]
