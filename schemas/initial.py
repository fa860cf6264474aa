"""The initial model: drawn from a generator that comes in, or all zeros.

Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
AISTATS 2010, equation 16: U(-a, a) with a = sqrt(6 / (fan_in + fan_out)). Elementwise float32
arithmetic only, so that one seed gives the same bits on every CPU.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod, sqrt

import numpy as np

from schemas.params import Params, ParamSpec, unflatten
from schemas.task import InitOptions


def initial_params(spec: ParamSpec, options: InitOptions, rng: "np.random.Generator") -> Params:
    """The model a task starts from: float32, shape (spec.size,). `rng` is seeded by the caller."""
    match options.kind:
        case "glorot":
            return glorot(spec, rng)
        case "zeros":
            return np.zeros(spec.size, dtype=np.float32)


def glorot(spec: ParamSpec, rng: "np.random.Generator") -> Params:
    """Glorot uniform for tensors of at least two dimensions, zeros for vectors and scalars."""
    flat = np.zeros(spec.size, dtype=np.float32)
    for part in unflatten(spec, flat).values():
        if part.ndim >= 2:
            _fill_uniform(part, _glorot_limit(part.shape), rng)
    return flat


def mlp_shapes(features: int, hidden: Sequence[int], classes: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a ReLU network's tensors: W1 (features, h1), b1 (h1,), ..., one pair a layer.

    Args:
        features: numbers an example.
        hidden: width of every hidden layer, bottom up; () is softmax regression.
        classes: answers to choose from.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (below, above) in enumerate(pairwise([features, *hidden, classes]), start=1):
        shapes[f"W{i}"], shapes[f"b{i}"] = (below, above), (above,)
    return shapes


def _glorot_limit(shape: tuple[int, ...]) -> float:
    """The bound a. Beyond two dimensions, ONNX' order: (out, in, *receptive field)."""
    return sqrt(6.0 / ((shape[0] + shape[1]) * prod(shape[2:])))


def _fill_uniform(part: Params, limit: float, rng: "np.random.Generator") -> None:
    rng.random(dtype=np.float32, out=part)
    part *= np.float32(2 * limit)
    part -= np.float32(limit)
