"""What is exchanged with others: checkpoints with their cards, published weights, ONNX files."""

from textir.hub.conversion import FORMATS, convert, convert_back, read_weights
from textir.hub.onnx_files import export_onnx, use_onnx
from textir.hub.publishing import (
    build_card,
    check_access,
    describe_training,
    push,
    weights_digest,
    write_card,
)

__all__ = [
    "FORMATS",
    "build_card",
    "check_access",
    "convert",
    "convert_back",
    "describe_training",
    "export_onnx",
    "push",
    "read_weights",
    "use_onnx",
    "weights_digest",
    "write_card",
]
