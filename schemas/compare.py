"""How two models differ, tensor by tensor. Pure; for people, not for the fold."""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from schemas.params import Params, ParamSpec, unflatten


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """How one tensor changed from `a` to `b`.

    Attributes:
        name: of the tensor.
        size: its elements.
        changed: elements that are not bit for bit the same.
        distance: Euclidean length of b - a.
        relative: that over the length of a; 0 where a is all zeros.
        largest: the largest magnitude in b - a.
    """

    name: str
    size: int
    changed: int
    distance: float
    relative: float
    largest: float


def tensor_diffs(spec: ParamSpec, a: Params, b: Params) -> list[TensorDiff]:
    """Compare two flat vectors, float32, shape (spec.size,), by the tensors of their task."""
    before, after = unflatten(spec, a), unflatten(spec, b)
    return [_diff(name, before[name], after[name]) for name in before]


def _diff(name: str, before: Params, after: Params) -> TensorDiff:
    a, delta = before.astype(np.float64), after.astype(np.float64) - before
    distance, length = sqrt(float(np.sum(delta * delta))), sqrt(float(np.sum(a * a)))
    return TensorDiff(
        name=name,
        size=int(a.size),
        changed=int(np.count_nonzero(after != before)),
        distance=distance,
        relative=distance / length if length else 0.0,
        largest=float(np.max(np.abs(delta))),
    )
