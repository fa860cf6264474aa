"""Vectors of small integers, most of them zero: what a lattice's keyframes and diffs are made of.

The vector lies in parts (its tensors). Either every part is a *run* with parameters of its own, or
the whole vector is one run: whatever takes fewer bits. A run is coded in one of four modes:

    0   all zero
    1   sparse, every value 1 or -1    gaps, signs
    2   sparse                         gaps, magnitudes less 1, signs
    3   dense                          all values, zigzag: 0, -1, 1, -2 ... as 0, 1, 2, 3 ...

Bits, in this order; numbers of a fixed width have their highest bit first:

    1                  1: the whole vector is one run
    a head a run       mode (2); for modes 1 to 3 the Rice parameter of gaps or values (5); for 1
                       and 2 the count of values less 1, in as many bits as size - 1 has; for 2 the
                       Rice parameter of magnitudes (5)
    quotients          of all runs, in unary: that many zeros, then a one
    remainders         of all runs, in as many bits as the parameter says
    signs              of all runs, 1 for minus

A gap is the number of zeros before a value: since the run's beginning, then since the value before.
Within a run gaps stand before magnitudes, among quotients as among remainders. So one look for ones
decodes all quotients, and what a reader allocates is bounded by the bits that came.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import rice
from schemas.codecs.rice import Bits
from schemas.errors import WireError
from schemas.outcomes import Reason

_ZERO: Final = 0
_ONES: Final = 1
_SPARSE: Final = 2
_DENSE: Final = 3
_MODE_BITS: Final = 2


@dataclass(frozen=True, slots=True)
class _Run:
    """One run, ready to be written, or its head as it was read.

    Attributes:
        size: elements.
        mode: 0 .. 3.
        count: values that are written.
        parameters: of the columns: gaps (or dense values), magnitudes.
        columns: those numbers, >= 0, each of shape (count,); empty where only a head was read.
        minus: the signs, shape (count,) or (0,).
    """

    size: int
    mode: int
    count: int
    parameters: tuple[int, ...] = ()
    columns: tuple[NDArray[np.int64], ...] = ()
    minus: Bits = field(default_factory=lambda: np.zeros(0, dtype=np.uint8))

    @property
    def head_bits(self) -> int:
        """What the head takes."""
        counted = (self.size - 1).bit_length() if self.mode in {_ONES, _SPARSE} else 0
        return _MODE_BITS + rice.PARAMETER_BITS * len(self.parameters) + counted

    @property
    def bits(self) -> int:
        """What all of the run takes."""
        costs = map(rice.cost, self.columns, self.parameters)
        return self.head_bits + sum(costs) + self.minus.size

    @property
    def fixed_bits(self) -> int:
        """What remainders and signs take."""
        signs = self.count if self.mode in {_ONES, _SPARSE} else 0
        return self.count * sum(self.parameters) + signs


def write(indices: NDArray[np.int64], values: NDArray[np.int32], sizes: Sequence[int]) -> Bits:
    """The bits of a vector that is zero but at `indices` (ascending, distinct), where it is not."""
    apart = list(_runs(indices, values, sizes))
    whole = apart if len(sizes) == 1 else list(_runs(indices, values, (sum(sizes),)))
    together = sum(run.bits for run in whole) <= sum(run.bits for run in apart)
    runs = whole if together else apart
    columns = [(c, b) for run in runs for c, b in zip(run.columns, run.parameters, strict=True)]
    return np.concatenate(
        [
            np.array([together], dtype=np.uint8),
            *(part for run in runs for part in _head(run)),
            *(rice.write(column >> b, 0) for column, b in columns),
            *(rice.write_fixed(column & ((1 << b) - 1), b) for column, b in columns if b),
            *(run.minus for run in runs),
        ]
    )


def read(
    bits: Bits, at: int, sizes: Sequence[int], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The indices and values of a vector that begins at bit `at` and ends with the bits.

    Raises WireError: cut short, bytes after the end, or a value beyond +-most (below 2^31).
    """
    together, at = _number(bits, at, 1)
    heads = []
    for size in (sum(sizes),) if together else sizes:
        run, at = _read_head(bits, at, size)
        heads.append(run)
    return _read_runs(bits, at, heads, most)


def _runs(
    indices: NDArray[np.int64], values: NDArray[np.int32], sizes: Sequence[int]
) -> Iterator[_Run]:
    """The vector cut into runs, each in its shortest mode."""
    bounds = [0, *accumulate(sizes)]
    cuts = np.searchsorted(indices, bounds).tolist()
    for start, size, (a, b) in zip(bounds, sizes, pairwise(cuts), strict=False):
        yield _run(indices[a:b] - start, values[a:b], size)


def _run(indices: NDArray[np.int64], values: NDArray[np.int32], size: int) -> _Run:
    if not indices.size:
        return _Run(size, _ZERO, 0)
    sparse = _sparse(indices, values, size)
    if sparse.bits <= size:  # a dense run has at least a bit for each
        return sparse
    dense = _dense(indices, values, size)
    return dense if dense.bits < sparse.bits else sparse


def _sparse(indices: NDArray[np.int64], values: NDArray[np.int32], size: int) -> _Run:
    gaps = np.diff(indices, prepend=-1) - 1
    more = np.abs(values.astype(np.int64)) - 1
    columns = (gaps, more) if more.any() else (gaps,)
    minus = (values < 0).view(np.uint8)
    parameters = tuple(map(rice.best, columns))
    return _Run(size, len(columns), indices.size, parameters, columns, minus)


def _dense(indices: NDArray[np.int64], values: NDArray[np.int32], size: int) -> _Run:
    folded = np.zeros(size, dtype=np.int64)
    wide = values.astype(np.int64)
    folded[indices] = (wide << 1) ^ (wide >> 63)
    return _Run(size, _DENSE, size, (rice.best(folded),), (folded,))


def _head(run: _Run) -> Iterator[Bits]:
    yield _fixed(run.mode, _MODE_BITS)
    for place, parameter in enumerate(run.parameters):
        yield _fixed(parameter, rice.PARAMETER_BITS)
        if not place and run.mode != _DENSE:
            yield _fixed(run.count - 1, (run.size - 1).bit_length())


def _read_head(bits: Bits, at: int, size: int) -> tuple[_Run, int]:
    mode, at = _number(bits, at, _MODE_BITS)
    if mode == _ZERO:
        return _Run(size, _ZERO, 0), at
    parameter, at = _number(bits, at, rice.PARAMETER_BITS)
    if mode == _DENSE:
        return _Run(size, mode, size, (parameter,)), at
    less, at = _number(bits, at, (size - 1).bit_length())
    if mode == _ONES:
        return _Run(size, mode, less + 1, (parameter,)), at
    second, at = _number(bits, at, rice.PARAMETER_BITS)
    return _Run(size, mode, less + 1, (parameter, second)), at


def _read_runs(
    bits: Bits, at: int, heads: Sequence[_Run], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    spare = sum(run.fixed_bits for run in heads)
    numbers = sum(run.count * len(run.parameters) for run in heads)
    if at + numbers + spare > bits.size:
        raise WireError(Reason.TRUNCATED, f"{bits.size} bits end before {numbers} numbers")
    quotients, at = rice.read(bits[: bits.size - spare], at, numbers, 0)
    rice.finish(bits, at + spare)
    columns = []
    for run in heads:
        for parameter in run.parameters:
            column, quotients = quotients[: run.count], quotients[run.count :]
            remainders, at = rice.read_fixed(bits, at, run.count, parameter)
            columns.append((column << parameter) | remainders)
    found, start, rest = [], 0, iter(columns)
    for run in heads:
        if run.mode:
            indices, values, at = _vector(bits, at, run, [next(rest) for _ in run.parameters], most)
            found.append((indices + start, values))
        start += run.size
    if not found:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32)
    parts = list(zip(*found, strict=True))
    return np.concatenate(parts[0]), np.concatenate(parts[1])


def _vector(
    bits: Bits, at: int, run: _Run, columns: Sequence[NDArray[np.int64]], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """The indices within a run and their values, and where its signs end."""
    if run.mode == _DENSE:
        (folded,) = columns
        indices = np.flatnonzero(folded)
        folded = folded[indices]
        values = (folded >> 1) ^ -(folded & 1)
        _check_most(np.abs(values), most)
        return indices, values.astype(np.int32), at
    gaps, *more = columns
    indices = _indices(gaps, run.size)
    magnitudes = more[0] + 1 if more else np.ones(run.count, dtype=np.int64)
    _check_most(magnitudes, most)
    end = at + run.count
    minus = bits[at:end].astype(np.bool_)
    return indices, np.where(minus, -magnitudes, magnitudes).astype(np.int32), end


def _indices(gaps: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    if int(gaps.max()) >= size:  # a sum of longer ones might overflow
        raise WireError(Reason.BAD_INDEX, f"a gap of {gaps.max()} among {size}")
    indices = np.cumsum(gaps + 1) - 1
    if indices[-1] >= size:
        raise WireError(Reason.BAD_INDEX, f"index {indices[-1]} of {size}")
    return indices


def _check_most(magnitudes: NDArray[np.int64], most: int) -> None:
    if magnitudes.size and not 0 <= int(magnitudes.max()) <= most:
        raise WireError(Reason.BAD_NUMBER, f"a value of {magnitudes.max()}, beyond {most}")


def _fixed(number: int, width: int) -> Bits:
    return rice.write_fixed(np.array([number]), width)


def _number(bits: Bits, at: int, width: int) -> tuple[int, int]:
    values, end = rice.read_fixed(bits, at, 1, width)
    return int(values[0]), end
