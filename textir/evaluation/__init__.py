"""How numbers are measured: metrics, scores of a pipeline, suites, rivals, speed."""

from textir.evaluation.metrics import Protocol, center_crop, mean_average_precision, psnr, ssim
from textir.evaluation.rivals import BASELINES
from textir.evaluation.scores import Evaluation, Pair, Score, contact_sheet, evaluate, load_pairs
from textir.evaluation.suite import SUITES, choose_rows, run_suite, table

__all__ = [
    "BASELINES",
    "SUITES",
    "Evaluation",
    "Pair",
    "Protocol",
    "Score",
    "center_crop",
    "choose_rows",
    "contact_sheet",
    "evaluate",
    "load_pairs",
    "mean_average_precision",
    "psnr",
    "run_suite",
    "ssim",
    "table",
]
