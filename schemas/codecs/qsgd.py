"""QSGD: every magnitude is rounded by chance to a multiple of a unit; most become zero. Unbiased.

Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS
2017, section 3: with the Euclidean norm and s levels the unit is norm / s. What is not zero is
written as Rice-coded gaps, signs and Rice-coded levels in place of the paper's Elias codes.

Without a budget s is 4. With one, s is the number, of whatever size and not only whole, at which
the payload is expected to fill it: below 1 fewer coordinates survive, each standing for more. How
long a payload becomes is then a matter of chance. The levels of one that is too long are rounded
again, by chance, to multiples of a larger unit, until it fits. Every such step keeps the mean, and
so does a chain of steps whose end depends only on those before (a stopped martingale). Where the
server's gain makes too much of the variance, the unit is held down (`schemas.codecs.holding`).

Layout, little-endian:

    offset  size    what
    0       2       unit, bfloat16, >= 0
    2       1 .. 5  k, varint (LEB128), 0 .. n: coordinates that are not zero
    and, unless k is 0, bits, highest first:
            5       Rice parameter b of the gaps
            5       Rice parameter c of the levels
            ...     k gaps (schemas.codecs.rice): zeros before the coordinate, since the last one
            k       signs, 1 for minus
            ...     k levels less 1
            0 .. 7  spare bits, 0

A coordinate of the delta is `level * unit` in float32, with its sign.
"""

from math import log2, sqrt
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import bfloat16, rice, varint
from schemas.codecs.codec import Ask, Codec
from schemas.codecs.holding import held_down
from schemas.codecs.length import exactly, needs
from schemas.codecs.negate import negate
from schemas.delta import Sparse
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params

_LEVELS: Final = 4.0
_FINEST: Final = 2.0**15
"""The most levels that a budget is given: finer than float16, and a level fits any Rice code."""

_SMALLEST: Final = 2.0**-96
"""No unit but zero is smaller: its reciprocal stays a float32."""

_FEWEST: Final = 1e-6
"""Expected coordinates below which nobody counts."""

_LARGEST: Final = np.float32(2.0**90)
"""What is larger is clipped: the largest unit that a budget can ask for stays a float32."""

_STEP: Final = 1.0 + 2.0**-7
"""The next bfloat16 is not further away than this factor."""

_PARAMETERS: Final = 2 * rice.PARAMETER_BITS
_LEAST: Final = 11
"""Holds one coordinate of 2^28 at any level."""


class _Drawn(NamedTuple):
    """What is not zero: ascending indices and levels >= 1, in units."""

    unit: float
    indices: NDArray[np.int64]
    levels: NDArray[np.int64]


_NOTHING: Final = _Drawn(0.0, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


def _draw(magnitudes: Params, wanted: float, rng: "np.random.Generator") -> _Drawn:
    """Round to multiples of a unit that travels exactly."""
    unit = float(bfloat16.widen(bfloat16.round_up(np.array([max(wanted, _SMALLEST)])))[0])
    steps = magnitudes * np.float32(1 / unit)
    steps += rng.random(steps.size, dtype=np.float32)
    indices = np.flatnonzero(steps >= 1)
    return _Drawn(unit, indices, steps[indices].astype(np.int64))


def _coarser(drawn: _Drawn, wanted: float, rng: "np.random.Generator") -> _Drawn:
    """Round what was drawn again."""
    magnitudes = drawn.levels.astype(np.float32) * np.float32(drawn.unit)
    again = _draw(magnitudes, max(wanted, drawn.unit * _STEP), rng)
    return again._replace(indices=drawn.indices[again.indices])


def _gaps(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(indices, prepend=-1) - 1


def _length(drawn: _Drawn) -> int:
    """Bytes of the payload."""
    count = drawn.indices.size
    bits = _PARAMETERS + count if count else 0
    for values in (_gaps(drawn.indices), drawn.levels - 1):
        bits += rice.cost(values, rice.best(values))
    return bfloat16.BYTES + len(varint.write(count)) + -(-bits // 8)


class _Shape(NamedTuple):
    """What the length depends on."""

    magnitudes: Params
    total: float
    norm: float


def _bits(shape: _Shape, unit: float) -> float:
    """What `_draw` is expected to cost, if gaps and levels were geometric."""
    size = shape.magnitudes.size
    clipped = float(np.minimum(shape.magnitudes, np.float32(unit)).sum(dtype=np.float64))
    count = max(clipped / unit, _FEWEST)
    gaps = _geometric_bits(max(0.0, size / count - 1))
    return _PARAMETERS + count * (
        1 + gaps + _geometric_bits(max(0.0, shape.total / unit / count - 1))
    )


def _geometric_bits(mean: float) -> float:
    """Bits of a Rice-coded geometric number under a good parameter."""
    b = max(0, round(log2(mean + 1e-9) - 0.4))
    stays = (mean / (1 + mean)) ** (1 << b)
    return 1 + b + stays / (1 - stays)


def _unit(shape: _Shape, bits: float) -> float:
    """The unit at which so many bits are expected: by halving, to 1 %."""
    low = log2(max(shape.norm / _FINEST, _SMALLEST))
    high = max(low, log2(shape.total) + 6)
    while high - low > 0.01:
        middle = (low + high) / 2
        if _bits(shape, 2**middle) > bits:
            low = middle
        else:
            high = middle
    return 2**high


def _fill(shape: _Shape, budget: int, rng: "np.random.Generator") -> _Drawn:
    """As many levels as fit in `budget` bytes."""
    aim = 8.0 * (budget - bfloat16.BYTES - 1.5)
    drawn = _draw(shape.magnitudes, _unit(shape, aim), rng)
    while (excess := _length(drawn) - budget) > 0:
        aim -= 8 * excess + 4
        drawn = _coarser(drawn, _unit(shape, max(aim, 1.0)), rng)
    return drawn


def _encode(vector: Params, ask: Ask, rng: "np.random.Generator") -> bytes:
    needs("qsgd", _LEAST, ask)
    magnitudes = np.minimum(np.abs(vector), _LARGEST)
    norm = sqrt(float(np.square(magnitudes, dtype=np.float64).sum()))
    if not norm:
        return _write(_NOTHING, vector)
    if ask.budget:
        shape = _Shape(magnitudes, float(magnitudes.sum(dtype=np.float64)), norm)
        drawn = _fill(shape, ask.budget, rng)
    else:
        drawn = _draw(magnitudes, norm / _LEVELS, rng)
    if ask.gain:
        factor = held_down(ask.gain, _omega(magnitudes, drawn.unit, norm))
        drawn = drawn._replace(unit=drawn.unit * factor)
    return _write(drawn, vector)


def _omega(magnitudes: Params, unit: float, norm: float) -> float:
    """The relative variance of one rounding to multiples of a unit."""
    rests = np.modf(magnitudes * np.float32(1 / unit))[0]
    return float((rests - rests * rests).sum(dtype=np.float64)) * (unit / norm) ** 2


def _write(drawn: _Drawn, vector: Params) -> bytes:
    unit = bfloat16.nearest(np.array([drawn.unit])).tobytes()
    head = unit + varint.write(drawn.indices.size)
    if not drawn.indices.size:
        return head
    parts = (_gaps(drawn.indices), drawn.levels - 1)
    chosen = [rice.best(values) for values in parts]
    gaps, levels = (rice.write(values, b) for values, b in zip(parts, chosen, strict=True))
    parameters = rice.write_fixed(np.array(chosen), rice.PARAMETER_BITS)
    minus = (vector[drawn.indices] < 0).astype(np.uint8)
    return head + rice.pack(parameters, gaps, minus, levels)


def _decode(payload: memoryview, size: int) -> Sparse:
    if len(payload) < bfloat16.BYTES:
        raise WireError(Reason.TRUNCATED, f"{len(payload)} bytes are less than the unit")
    unit = bfloat16.read(payload[: bfloat16.BYTES])[0]
    count, start = varint.read(payload, bfloat16.BYTES)
    if count > size:
        raise WireError(Reason.BAD_INDEX, f"{count} of {size} coordinates")
    if not count:
        exactly(payload, start)
        return Sparse(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
    bits = rice.unpack(payload[start:])
    (gap_bits, level_bits), at = rice.read_fixed(bits, 0, 2, rice.PARAMETER_BITS)
    gaps, at = rice.read(bits, at, count, int(gap_bits))
    minus, at = rice.read_fixed(bits, at, count, 1)
    levels, at = rice.read(bits, at, count, int(level_bits))
    rice.finish(bits, at)
    indices = np.cumsum(gaps + 1) - 1
    if indices[-1] >= size:
        raise WireError(Reason.BAD_INDEX, f"index {indices[-1]} of {size}")
    values = (levels + 1).astype(np.float32)
    negate(values, minus)
    with np.errstate(over="ignore", invalid="ignore"):  # a bad unit is for admission to see
        values *= unit
    return Sparse(indices, values)


QSGD: Final = Codec(
    codec_id=7,
    name="qsgd",
    error_feedback=False,
    sparse=True,
    encode=_encode,
    decode=_decode,
    least_bytes=lambda _size: _LEAST,
)
