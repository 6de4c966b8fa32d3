"""What is exchanged with others: checkpoints with their cards, published weights, ONNX files."""

from textir.hub.publishing import (
    build_card,
    check_access,
    describe_training,
    push,
    weights_digest,
    write_card,
)

__all__ = [
    "build_card",
    "check_access",
    "describe_training",
    "push",
    "weights_digest",
    "write_card",
]
