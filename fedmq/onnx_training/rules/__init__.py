"""One rule an operator: what the adjoints of its inputs are."""

from typing import Final

from fedmq.onnx_training.rules import (
    activations,
    convolution,
    elementwise,
    indexing,
    matmul,
    normalization,
    pooling,
    reduce,
    shape,
)
from fedmq.onnx_training.rules.op import Rule

RULES: Final[dict[str, Rule]] = {
    **activations.RULES,
    **convolution.RULES,
    **elementwise.RULES,
    **indexing.RULES,
    **matmul.RULES,
    **normalization.RULES,
    **pooling.RULES,
    **reduce.RULES,
    **shape.RULES,
}
"""By the operator's name in the domain "" (opset 18 to 20)."""

__all__ = ["RULES"]
