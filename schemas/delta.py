"""A decoded update: `delta = w_local - w_base`, added by the server.

Two forms, so that a sparse update never costs the size of the model. Both are read-only values;
`add_scaled` is the one arithmetic that every strategy needs, in the order of the elements.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.params import Params

BLOCK: Final = 262_144
"""Elements folded at a time: 1 MiB of float32 of scratch. Smaller blocks lose more by starting
again than they win by staying in a core's cache (docs/results.md)."""

_SURE_FROM: Final = 1e-15
"""Bounds below this have squares that float32 rounds away: `within` looks at every element."""


@dataclass(frozen=True, slots=True)
class Dense:
    """Every coordinate: float32, shape (size,), possibly a view of the bytes that came in."""

    values: Params


@dataclass(frozen=True, slots=True)
class Sparse:
    """Some coordinates: int64 indices and float32 values of one length.

    An index may be repeated: its values add up (a codec may carry a multiset).
    """

    indices: NDArray[np.int64]
    values: Params


Delta: TypeAlias = Dense | Sparse


def add_scaled(total: Params, delta: Delta, weight: float) -> None:
    """Do `total += weight * delta` in place: float32, elementwise, in blocks; no BLAS."""
    scale = np.float32(weight)
    match delta:
        case Dense(values):
            _add_dense(total, values, scale)
        case Sparse(indices, values):  # in order and one by one, repeated or not
            np.add.at(total, indices, scale * values)


def _add_dense(total: Params, values: Params, scale: np.float32) -> None:
    if scale == 1:  # a fresh update: multiplying by one changes no bit
        np.add(total, values, out=total)
        return
    scratch = np.empty(min(BLOCK, total.size), dtype=np.float32)
    for start in range(0, total.size, BLOCK):
        part = total[start : start + BLOCK]
        product = scratch[: part.size]
        np.multiply(values[start : start + BLOCK], scale, out=product)
        np.add(part, product, out=part)


def peak(values: Params) -> float:
    """The largest magnitude of a vector (0 when empty); NaN if any element is NaN.

    One look finds NaN and both infinities too: `isfinite(peak(values))`.
    """
    highest = 0.0
    for start in range(0, values.size, BLOCK):
        part = values[start : start + BLOCK]
        top = max(float(np.max(part)), -float(np.min(part)))
        if not top <= np.inf:
            return float("nan")
        highest = max(highest, top)
    return highest


def within(values: Params, bound: float) -> bool:
    """Tell whether no magnitude is above `bound` (finite): `peak(values) <= bound`, only faster.

    Rounded sums of squares never fall, in whatever order they are taken: no square is larger than
    the sum, and a NaN or an infinity stays in it. So a small sum is a proof, and BLAS may take it;
    where it proves nothing, `peak` decides. The answer is the same on every machine.
    """
    if bound >= _SURE_FROM and float(np.vdot(values, values)) <= 0.99 * bound * bound:
        return True
    return peak(values) <= bound


def to_dense(delta: Delta, size: int) -> Params:
    """Spell a delta out: float32, shape (size,), a fresh array."""
    total = np.zeros(size, dtype=np.float32)
    add_scaled(total, delta, 1.0)
    return total
