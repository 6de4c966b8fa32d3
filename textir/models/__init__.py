"""The networks, a file for each box of the figure; every file is self-contained so that it can
travel to the Hub alone.

A file loads when something of it is first asked for: who reads instructions needs no torch.
"""

from importlib import import_module

FILES = {
    "DRSformer": "restormer",
    "DegradationDetector": "degradation_detector",
    "EditProcessor": "edit_processor",
    "GuidanceMatcher": "guidance_matcher",
    "ImageToTextMapper": "image_to_text_mapper",
    "InstructionReader": "instruction_reader",
    "NAFNet": "nafnet",
    "PhotoEncoder": "photo_encoder",
    "PhotoProcessor": "photo_encoder",
    "PositionedUNet": "positioned_unet",
    "PromptIR": "restormer",
    "Restormer": "restormer",
    "SFNet": "sfnet",
    "TextEditableRestorer": "text_editable_restorer",
    "TextualCleaner": "textual_cleaner",
}
RESTORING = ("DRSformer", "NAFNet", "PromptIR", "Restormer", "SFNet")

__all__ = list(FILES)


def __getattr__(name: str):
    """The classes of `FILES`, and `RESTORERS`: those networks that restore, alone or with
    guidance."""
    if name == "RESTORERS":
        found = tuple(__getattr__(restorer) for restorer in RESTORING)
    elif name in FILES:
        found = getattr(import_module(f"{__name__}.{FILES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found
