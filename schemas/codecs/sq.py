"""Unbiased systematic sign sampling: k impulses of one size, as many as the bytes hold.

The delta u has the sum of magnitudes L. k impulses of size L / k and of the sign of their
coordinate are placed by systematic sampling (Madow, "On the Theory of Systematic Sampling, II",
1949): k points at one distance and one uniform offset on the running sum of |u|. A coordinate gets
the whole part of k |u_i| / L impulses and one more with the chance of the rest, so the mean over
draws is u itself: no residual is needed, and an update that is lost, repeated or late needs no
repair. The relative variance E|sent - u|^2 / |u|^2 is

    omega = L^2 / (k |u|^2) - 1    (less where a coordinate is due more than one impulse)

which the encoder knows: where the server's gain makes too much of it the scale is held down
(`schemas.codecs.holding`), and the mean with it.

How k is found without a bias: a code's length depends on which coordinates were drawn, so drawing
again whatever is too long would favour coordinates of short codes. Instead k comes from pilot draws
that are thrown away, a few are added, and while the code is too long impulses are dropped at
random: how many is decided by what is held, and which ones by chance alone. At the size L / k of
what is left the mean of what is left is what was held before: a martingale, exact whenever it
stops.

The layout is that of `schemas.codecs.gaps`: the scale is L / k, rounded up or down by chance; the
first gap is the first index, each later one the distance to the index before, and 0 hits the same
coordinate again; each coordinate that was hit has one sign. Coordinate i of the delta is
`float32(hits) * scale`, or minus that, in one float32 product.
"""

from math import sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import bfloat16, gaps
from schemas.codecs.codec import Ask, Codec
from schemas.codecs.holding import held_down
from schemas.delta import Sparse
from schemas.errors import ConfigError
from schemas.params import Params

MOST: Final = 16
"""Impulses a coordinate: more would be worth less than their bytes, however many are allowed. More
are refused, too: a long payload of repeated hits would cost the server hundreds of times its size.
"""

_LARGEST: Final = 3.3895313892515355e38
"""The largest bfloat16: a scale above it is clipped. One below 2^-133 is that or 0, by chance."""

_PILOTS: Final = 8


def default_bytes(size: int) -> int:
    """The payload that is filled when no budget is given: 103 bytes for 9,610 parameters."""
    return max(24, gaps.least_bytes(size), round(1.05 * sqrt(size)))


def omega(vector: Params, impulses: int) -> float:
    """The relative variance of so many impulses on a vector that is not zero.

    Exact as long as no coordinate is due more than one impulse, else too large.
    """
    exact = vector.astype(np.float64)
    total = float(np.abs(exact).sum())
    return total / impulses * (total / float(np.square(exact).sum())) - 1


def _encode(vector: Params, ask: Ask, rng: "np.random.Generator") -> bytes:
    least = gaps.least_bytes(vector.size)
    if 0 < ask.budget < least:
        raise ConfigError("uplink", f"sq needs {least} bytes here, not {ask.budget}: allow more")
    running = np.add.accumulate(np.abs(vector), dtype=np.float64)
    if not running[-1]:
        return gaps.NOTHING
    budget = 8 * (ask.budget or default_bytes(vector.size))
    fitting = _fitting(running, budget, rng)
    ample = min(MOST * vector.size, fitting + round(0.2 * sqrt(fitting)))
    places = _thinned(_drawn(running, ample, rng), budget, rng)
    factor = held_down(ask.gain, omega(vector, fitting)) if ask.gain else 1.0
    size = running[-1:] / places.size * factor
    scale = bfloat16.drawn(np.minimum(size, _LARGEST), rng)
    minus = vector[places[_firsts(places)]] < 0
    return gaps.write(scale, np.diff(places, prepend=0), minus)


def _drawn(
    running: NDArray[np.float64], count: int, rng: "np.random.Generator"
) -> NDArray[np.int64]:
    """Draw `count` impulses by systematic sampling: indices, ascending, some of them repeated."""
    points = (np.arange(count) + rng.random()) * (running[-1] / count)
    last = running.searchsorted(running[-1])  # rounding may put a point upon the end
    places: NDArray[np.int64] = running.searchsorted(points, side="right")
    np.minimum(places, last, out=places)
    return places


def _firsts(places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which impulses are the first on their coordinate."""
    firsts = np.ones(places.size, dtype=np.bool_)
    np.not_equal(places[1:], places[:-1], out=firsts[1:])
    return firsts


def _bits(places: NDArray[np.int64]) -> int:
    return gaps.count_bits(np.diff(places, prepend=0), int(np.count_nonzero(_firsts(places))))


def _fitting(running: NDArray[np.float64], budget: int, rng: "np.random.Generator") -> int:
    """How many impulses take about `budget` bits, by pilot draws."""
    most = min(budget, MOST * running.size)
    count = max(1, min(most, budget // 8))
    for _ in range(_PILOTS):
        fitting = count * budget / _bits(_drawn(running, count, rng))
        last, count = count, max(1, min(most, round(fitting)))
        if abs(count - last) <= 1 + 0.1 * sqrt(count):
            break
    return count


def _thinned(
    places: NDArray[np.int64], budget: int, rng: "np.random.Generator"
) -> NDArray[np.int64]:
    """Drop impulses at random until the code fits into `budget` bits; one always does."""
    while (bits := _bits(places)) > budget and places.size > 1:
        drop = max(1, (bits - budget) * places.size // bits)  # one saves less than its share
        places = np.delete(places, rng.choice(places.size, drop, replace=False))
    return places


def _decode(payload: memoryview, size: int) -> Sparse:
    opened = gaps.read(payload, size, MOST * size)
    firsts = _firsts(opened.sums).nonzero()[0]
    values = gaps.read_values(opened, firsts.size)
    if firsts.size == opened.sums.size:  # no coordinate was hit twice
        return Sparse(opened.sums, values)
    hits = np.diff(firsts, append=opened.sums.size)
    with np.errstate(over="ignore"):  # a bad scale is for admission to see
        values *= hits.astype(np.float32)
    return Sparse(opened.sums[firsts], values)


SQ: Final = Codec(
    codec_id=2,
    name="sq",
    error_feedback=False,
    sparse=True,
    encode=_encode,
    decode=_decode,
    least_bytes=gaps.least_bytes,
)
