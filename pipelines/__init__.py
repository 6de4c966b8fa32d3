"""Pipelines in diffusers format, and the checkpoint that comes with the package.

from pipelines import load
pipe = load("mini")
"""

import gc

import textir  # noqa: F401  first: it sets up the threads of torch

# The collector would walk over thousands of new modules again and again: a quarter of the time.
was_collecting = gc.isenabled()
gc.disable()
try:
    from pipelines.loading import MINI, MINI_TEXTIR, load, load_editor
    from pipelines.pipeline_text_editable_restoration import TextEditableRestorationPipeline
    from pipelines.pipeline_text_guided_restoration import (
        RestorationOutput,
        TextGuidedRestorationPipeline,
    )
    from textir import models
    from textir.tiling import choose_tile
finally:
    if was_collecting:
        gc.enable()

# Repositories load into these classes; none of their own code runs.
for kind in (TextGuidedRestorationPipeline, TextEditableRestorationPipeline):
    kind._own_components = {
        name: f"{models.__name__}.{file}" for name, file in models.FILES.items()
    }
TextGuidedRestorationPipeline._embedded = {"mini": MINI}
TextEditableRestorationPipeline._embedded = {"mini-textir": MINI_TEXTIR}
TextGuidedRestorationPipeline._choose_tile = staticmethod(choose_tile)
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
