"""The losses: a scalar, the mean over the batch, and its derivative. Pure.

Written together, for the derivative is simpler than what differentiating the value would give. The
means are torch's: over examples where a class is told, else over every element.
"""

from collections.abc import Callable
from typing import Final, NamedTuple, get_args

import numpy as np

from fedmq.onnx_training.graph import Builder, Shape
from schemas.bundle import CLASSES, Loss
from schemas.errors import ConfigError

LOSSES: Final[tuple[Loss, ...]] = get_args(Loss)
"""The losses whose label is the number of a class."""


class Lost(NamedTuple):
    """Names of the loss, a scalar, and of its derivative, of the output's shape."""

    value: str
    slope: str


def label_shape(loss: Loss, output: Shape) -> Shape:
    """The shape of one example's label. Raises ConfigError: the output does not fit the loss."""
    if loss in CLASSES:
        if len(output) != 2 or output[1] < 2:
            raise ConfigError("loss", f"{loss!r} takes outputs (batch, classes), not {output}")
        return ()
    return output[1:]


def write(build: Builder, loss: Loss, output: str, shape: Shape, label: str) -> Lost:
    """Write the nodes of a loss.

    Args:
        build: takes them.
        loss: which.
        output: the network's: logits for "cross-entropy" and "bce-with-logits", log-probabilities
            for "nll".
        shape: of the output.
        label: int64, shape (batch,): a class; else float32, the output's shape.
    """
    if loss in CLASSES:
        return _classes(build, output, shape[1], label, logits=loss == "cross-entropy")
    return _OF_ELEMENTS[loss](build, output, label)


def _classes(g: Builder, output: str, classes: int, label: str, *, logits: bool) -> Lost:
    log = g.op("LogSoftmax", output, axis=1) if logits else output
    picked = g.op("GatherElements", log, g.op("Unsqueeze", label, g.ints([1])), axis=1)
    value = g.op("Neg", g.op("ReduceMean", picked, keepdims=0))
    on_off = g.constant(np.array([0, 1], np.float32))
    one_hot = g.op("OneHot", label, g.constant(np.array(classes, np.int64)), on_off)
    away = g.op("Sub", g.op("Softmax", output, axis=1), one_hot) if logits else g.op("Neg", one_hot)
    return Lost(value, _over(g, away, label))


def _over(g: Builder, slope: str, many: str) -> str:
    """Divided by how many there are."""
    return g.op("Div", slope, g.op("CastLike", g.op("Size", many), slope))


def _bce(g: Builder, z: str, label: str) -> Lost:
    """softplus(z) - z t, and sigmoid(z) - t."""
    each = g.op("Sub", g.op("Softplus", z), g.op("Mul", z, label))
    slope = g.op("Sub", g.op("Sigmoid", z), label)
    return Lost(g.op("ReduceMean", each, keepdims=0), _over(g, slope, z))


def _mse(g: Builder, y: str, label: str) -> Lost:
    """e^2, and 2e."""
    error = g.op("Sub", y, label)
    value = g.op("ReduceMean", g.op("Mul", error, error), keepdims=0)
    return Lost(value, _over(g, g.op("Add", error, error), y))


def _mae(g: Builder, y: str, label: str) -> Lost:
    """|e|, and its sign."""
    error = g.op("Sub", y, label)
    value = g.op("ReduceMean", g.op("Abs", error), keepdims=0)
    return Lost(value, _over(g, g.op("Sign", error), y))


def _huber(g: Builder, y: str, label: str) -> Lost:
    """With c = e clipped to [-1, 1]: c (e - c/2), and c (Huber 1964, delta = 1)."""
    error = g.op("Sub", y, label)
    clipped = g.op("Clip", error, g.number(-1), g.number(1))
    each = g.op("Mul", clipped, g.op("Sub", error, g.op("Mul", clipped, g.number(0.5))))
    return Lost(g.op("ReduceMean", each, keepdims=0), _over(g, clipped, y))


_OF_ELEMENTS: Final[dict[str, Callable[[Builder, str, str], Lost]]] = {
    "bce-with-logits": _bce,
    "huber": _huber,
    "mae": _mae,
    "mse": _mse,
}
