"""The lattice, once more: what is published of a model are whole numbers of steps from W0.

    V = W0 + float32(q) * 2^-m          elementwise, in float32: docs/wire.md, section 16
    at every publication                q += trunc((W - V) / 2^-m)

W is the model as it is folded, W - V one subtraction in float32. Of q and of what is added to it
no magnitude is beyond its bound; NaN adds nothing. Exponents m only grow: then q is doubled first.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.simulator.checker.payload import Values

Q_MAX: Final = 2**24 - 1
"""The highest |q|."""


@dataclass(frozen=True, slots=True)
class Point:
    """One publication on the lattice.

    Attributes:
        serial: which one it is of the task's.
        epoch: in which it was made; after a move that to which it was taken along.
        version: of the model.
        sizes: elements of every tensor.
        exponents: m of every tensor.
        q: int64, shape (sum(sizes),).
    """

    serial: int
    epoch: int
    version: int
    sizes: tuple[int, ...]
    exponents: tuple[int, ...]
    q: NDArray[np.int64]


class Lattice:
    """Where the published model is: at W0 in the beginning."""

    def __init__(self, origin: Values, sizes: tuple[int, ...], exponents: tuple[int, ...]) -> None:
        self.origin = origin
        self.sizes = sizes
        self.exponents = exponents
        self.q = np.zeros(origin.size, np.int64)

    @property
    def params(self) -> Values:
        """V."""
        with np.errstate(all="ignore"):
            return self.origin + self.q.astype(np.float32) * self._powers(-1).astype(np.float32)

    def walk(self, params: Values, exponents: tuple[int, ...]) -> None:
        """Go towards W with steps that are halved as often as these exponents ask, if at all."""
        finer = tuple(max(pair) for pair in zip(self.exponents, exponents, strict=True))
        self.q = _within(self.q * self._powers(-1) * _each(finer, self.sizes), Q_MAX)
        self.exponents = finer
        with np.errstate(all="ignore"):
            way = (params - self.params).astype(np.float64) * self._powers(1)
        steps = _within(np.where(np.isnan(way), 0, np.trunc(way)), 2 * Q_MAX)
        self.q = _within((self.q + steps).astype(np.float64), Q_MAX)

    def _powers(self, sign: int) -> NDArray[np.float64]:
        """2^m or 2^-m of every element."""
        return _each(tuple(sign * m for m in self.exponents), self.sizes)


def _each(exponents: tuple[int, ...], sizes: tuple[int, ...]) -> NDArray[np.float64]:
    return np.repeat(np.array([2.0**m for m in exponents]), sizes)


def _within(numbers: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    return np.clip(numbers, -most, most).astype(np.int64)
