"""Pipelines in diffusers format, and the checkpoint that comes with the package.

from pipelines import load
pipe = load("mini")
"""

from pipelines.loading import MINI, load
from pipelines.pipeline_text_guided_restoration import (
    RestorationOutput,
    TextGuidedRestorationPipeline,
)
from textir import models

# Repositories load into these classes; none of their own code runs.
TextGuidedRestorationPipeline._own_components = {
    name: getattr(models, name).__module__ for name in models.__all__
}
TextGuidedRestorationPipeline._embedded = {"mini": MINI}
TextGuidedRestorationPipeline._default_instruction_reader = models.InstructionReader()

__all__ = ["MINI", "RestorationOutput", "TextGuidedRestorationPipeline", "load"]
