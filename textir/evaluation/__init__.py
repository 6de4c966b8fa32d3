"""How numbers are measured: protocols, metrics, scores of a pipeline, comparisons, suites, rivals,
speed."""

from textir.evaluation.compare import Comparison, compare
from textir.evaluation.intervals import paired_difference, paired_interval
from textir.evaluation.metrics import mean_average_precision, psnr, ssim
from textir.evaluation.niqe import niqe
from textir.evaluation.protocol import PRESETS, Protocol, center_crop, read_protocol
from textir.evaluation.rivals import BASELINES
from textir.evaluation.rows import RowScores, read_rows, table, tables
from textir.evaluation.scores import Evaluation, Pair, Score, contact_sheet, evaluate, load_pairs
from textir.evaluation.suite import (
    SUITES,
    choose_rows,
    run_edits,
    run_suite,
    run_suites,
    suite_tables,
)

__all__ = [
    "BASELINES",
    "PRESETS",
    "SUITES",
    "Comparison",
    "Evaluation",
    "Pair",
    "Protocol",
    "RowScores",
    "Score",
    "center_crop",
    "choose_rows",
    "compare",
    "contact_sheet",
    "evaluate",
    "load_pairs",
    "mean_average_precision",
    "niqe",
    "paired_difference",
    "paired_interval",
    "psnr",
    "read_protocol",
    "read_rows",
    "run_edits",
    "run_suite",
    "run_suites",
    "ssim",
    "suite_tables",
    "table",
    "tables",
]
