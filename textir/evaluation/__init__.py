"""How numbers are measured: metrics, scores of a pipeline, suites, rivals, speed."""

from textir.evaluation.metrics import Protocol, center_crop, mean_average_precision, psnr, ssim
from textir.evaluation.scores import Evaluation, Pair, Score, contact_sheet, evaluate, load_pairs

__all__ = [
    "Evaluation",
    "Pair",
    "Protocol",
    "Score",
    "center_crop",
    "contact_sheet",
    "evaluate",
    "load_pairs",
    "mean_average_precision",
    "psnr",
    "ssim",
]
