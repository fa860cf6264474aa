"""Is the gradient that of the loss? Directional finite differences through the built graph. Pure.

For a direction d of length 1 within one tensor, <gradient, d> must be (loss(theta + h d) -
loss(theta - h d)) / 2h. Two kinds of directions are tried: along the gradient, which finds what is
wrong in size, and at random, which finds what is missing. float32 allows no one h for every model:
several are tried, and the best counts. Where a kink lies between the two points a smaller h avoids
it, and of several directions the median is not moved by it; a wrong rule is wrong with every h, in
most directions.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ConfigError
from schemas.params import Params, ParamSpec, unflatten

Session: TypeAlias = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]
"""Runs a graph: inputs by name to outputs in their order."""

Run: TypeAlias = Callable[[bytes], Session]
"""Opens a serialised model; the caller brings one, e.g. over onnxruntime."""

ERROR_MAX: Final = 5e-2
STEPS: Final = (0.01, 0.003, 0.03, 0.001, 0.1, 0.0003, 0.0001)
"""h, as a fraction of the tensor's length: first what is most often good."""

GOOD: Final = 5e-3
"""An error so small that no other h is tried."""

NOISE_MAX: Final = 5e-2
"""Where float32 can tell a difference no better than this, it tells nothing."""

DIRECTIONS: Final = 3
"""Of each kind."""

TRIES: Final = 3
"""With directions of its own each: kinks come by chance, and what is wrong stays wrong."""

_EPSILON: Final = float(np.finfo(np.float32).eps)


def check(
    step: Session, params: ParamSpec, feeds: Mapping[str, NDArray[Any]], rng: np.random.Generator
) -> float:
    """Compare the gradient of every trained tensor with finite differences.

    Args:
        step: the training step.
        params: names and kinds of the tensors.
        feeds: x and label, and theta, float32, shape (params.size,): where to look.
        rng: draws the directions.

    Returns:
        The worst relative error.

    Raises:
        ConfigError: it is above ERROR_MAX; the tensor is named.
    """
    theta: Params = np.asarray(feeds["theta"], np.float32)
    loss, flat = (np.asarray(out) for out in step(feeds)[:2])
    if not np.isfinite(loss) or not np.isfinite(flat).all():
        raise ConfigError("model", "its loss or gradient is not finite: check the initial values")
    parts, gradient = unflatten(params, theta), unflatten(params, flat.astype(np.float32))
    worst = 0.0
    for tensor, at in zip(params.tensors, _offsets(params), strict=True):
        if tensor.kind != "trained":
            continue
        own = gradient[tensor.name].astype(np.float64).reshape(-1)
        length = max(float(np.linalg.norm(parts[tensor.name])), 0.01 * tensor.size**0.5)

        def moved(by: NDArray[np.float64], at: slice = at) -> float:
            there = theta.copy()
            there[at] += by.astype(np.float32)
            return float(step({**feeds, "theta": there})[0])

        error = np.inf
        for _ in range(TRIES):
            kinds = _directions(own, rng)
            error = min(error, max(_error(moved, own, d, length, abs(float(loss))) for d in kinds))
            if error <= ERROR_MAX:
                break
        else:
            raise ConfigError(
                "model",
                f"the gradient of {tensor.name!r} is off by {error:.1%}: do not train this; "
                "please report the model",
            )
        worst = max(worst, error)
    return worst


def _offsets(params: ParamSpec) -> list[slice]:
    ends = np.cumsum([tensor.size for tensor in params.tensors])
    return [slice(int(e) - t.size, int(e)) for t, e in zip(params.tensors, ends, strict=True)]


def _directions(
    gradient: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both kinds of directions, each (DIRECTIONS, size), of length 1."""
    along, across = rng.standard_normal((2, DIRECTIONS, gradient.size))
    norm = float(np.linalg.norm(gradient))
    if norm:
        along = 0.5 * _unit(along) + gradient / norm  # never 0, also in one dimension
    return _unit(along), _unit(across)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / lengths


def _error(
    moved: Callable[[NDArray[np.float64]], float],
    gradient: NDArray[np.float64],
    directions: NDArray[np.float64],
    length: float,
    loss: float,
) -> float:
    """The least relative error over all steps that float32 can tell apart.

    Relative to what a direction sees of the gradient, at least what a random one is expected to.
    """
    told = (directions * gradient).sum(axis=1)
    expected = float(np.linalg.norm(gradient)) / gradient.size**0.5
    errors = []
    for fraction in STEPS:
        h = fraction * length
        found = np.array([moved(h * d) - moved(-h * d) for d in directions]) / (2 * h)
        noise = _EPSILON * max(loss, 1e-3) / h
        scale = np.maximum.reduce([abs(told), abs(found), np.full(len(told), expected + noise)])
        if noise > NOISE_MAX * np.median(scale):
            continue
        errors.append(float(np.median(abs(found - told) / scale)))
        if errors[-1] < GOOD:
            break
    return min(errors, default=0.0)
