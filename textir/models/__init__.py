"""The networks, a file for each box of the figure; every file is self-contained so that it can
travel to the Hub alone."""

from textir.models.degradation_detector import DegradationDetector
from textir.models.edit_processor import EditProcessor
from textir.models.guidance_matcher import GuidanceMatcher
from textir.models.image_to_text_mapper import ImageToTextMapper
from textir.models.instruction_reader import InstructionReader
from textir.models.nafnet import NAFNet
from textir.models.photo_encoder import PhotoEncoder, PhotoProcessor
from textir.models.positioned_unet import PositionedUNet
from textir.models.restormer import DRSformer, PromptIR, Restormer
from textir.models.sfnet import SFNet
from textir.models.text_editable_restorer import TextEditableRestorer
from textir.models.textual_cleaner import TextualCleaner

RESTORERS = (DRSformer, NAFNet, PromptIR, Restormer, SFNet)
"""The networks that restore, alone or with guidance."""

__all__ = [
    "DRSformer",
    "DegradationDetector",
    "EditProcessor",
    "GuidanceMatcher",
    "ImageToTextMapper",
    "InstructionReader",
    "NAFNet",
    "PhotoEncoder",
    "PhotoProcessor",
    "PositionedUNet",
    "PromptIR",
    "Restormer",
    "SFNet",
    "TextEditableRestorer",
    "TextualCleaner",
]
