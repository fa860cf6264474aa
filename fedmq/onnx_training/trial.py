"""What a step is tried with before it is given away: drawn from a generator. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from fedmq.onnx_training.graph import Net
from fedmq.onnx_training.step import Head
from schemas.bundle import CLASSES
from schemas.errors import ConfigError
from schemas.params import ParamSpec, flatten

BATCH: Final = 4
"""Examples with which a bundle is checked."""

FORWARD_MAX: Final = 1e-3
"""How far the step's loss may be from that of the model as it was given, relatively."""


def feeds_of(net: Net, head: Head, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Examples and labels, drawn: a normal, indices that every table has, classes, [0, 1)."""
    x = net.x[1]
    shape = (BATCH, *x.shape[1:])
    feeds: dict[str, NDArray[Any]] = {}
    if x.is_float:
        feeds["x"] = rng.standard_normal(shape).astype(np.float32)
    else:
        dtype = np.int64 if x.dtype == TensorProto.INT64 else np.int32
        feeds["x"] = rng.integers(0, _vocabulary(net), shape).astype(dtype)
    wanted = (BATCH, *head.label.shape[1:])
    if head.loss in CLASSES:
        feeds["label"] = rng.integers(0, head.output.shape[1], wanted).astype(np.int64)
    else:
        feeds["label"] = rng.uniform(size=wanted).astype(np.float32)
    return feeds


def _vocabulary(net: Net) -> int:
    """The smallest table in which something is looked up."""
    sizes = [
        net.params[node.input[0]][0]
        for node in net.nodes
        if node.op_type == "Gather" and node.input[0] in net.params
    ]
    return min(sizes, default=2)


def near(
    params: ParamSpec, theta0: Mapping[str, NDArray[np.float32]], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A place near theta0, where what begins as zero is none: a kink is no place to measure at."""
    near = {}
    for tensor in params.tensors:
        value = theta0[tensor.name].astype(np.float64)
        if tensor.kind == "trained":
            scale = max(float(np.sqrt(np.mean(value**2))), 0.1)
            value = value + 0.05 * scale * rng.standard_normal(value.shape)
        near[tensor.name] = value
    return flatten(params, near)


def check_forward(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """The step must lose what the model loses: finite differences know only the step.

    Raises ConfigError: it does not.
    """
    away = abs(float(ours) - float(theirs))
    if not away <= FORWARD_MAX * max(abs(float(theirs)), 1e-3):
        raise ConfigError(
            "model",
            f"the step loses {float(ours)} where the model loses {float(theirs)}: report it",
        )
