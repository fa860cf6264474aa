"""EDEN: a seeded rotation, then as many bits a coordinate as the budget holds. Unbiased.

Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation", NeurIPS 2021, and "EDEN:
Communication-Efficient and Robust Distributed Mean Estimation for Federated Learning", ICML 2022.
After the rotation (`schemas.codecs.rotation`) every coordinate is as good as normal: it is rounded
to the best levels of a normal distribution, and the scale of a block is chosen so that the mean
over rotations is the vector itself,

    ||y||^2 / <y, levels>        y: the rotated block

rather than so that the error is least. No residual is needed. Of N rotated coordinates m, a seeded
uniform subset, have b + 1 bits and the others b. With b = 0 the others are not sent at all and the
scale is multiplied by N / m. Relative variance: some (pi / 2) N / m - 1 below a bit, 0.57 at one
bit, then 0.13, 0.036 and 0.0096. Where the server's gain makes too much of it, the scales are held
down (`schemas.codecs.holding`).

Every device's update is a vector of small integers in the same coordinates once the seed is the
task's: that is what a secure aggregation can add up under masks.

Layout, little-endian, of n coordinates filled up to N in K blocks:

    offset  size    what
    0       1       b (0 .. 3) in the low 3 bits, g (6 .. 16) in the high 5
    1       4       seed, uint32
    5       1 .. 5  m, varint (LEB128), 1 .. N
    ...     2 K     scales, bfloat16, >= 0
    ...     ...     m codes of b + 1 bits, then N - m of b bits; highest bits first, spare bits 0

A code is a sign (1 for minus), then the number of the level. Coordinate i of the delta is `w[i] *
scale` of its block, in float32, where w are the levels after `rotate_back`.
"""

import struct
from math import frexp, pi
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import bfloat16, rotation, seeded, varint
from schemas.codecs.codec import Ask, Codec
from schemas.codecs.holding import held_down
from schemas.codecs.length import exactly, needs, no_spare_bits
from schemas.delta import Dense, peak
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params

LEVELS: Final = (
    (51,),
    (29, 97),
    (16, 48, 86, 138),
    (8, 25, 42, 60, 80, 104, 132, 175),
)
"""Magnitudes by bits - 1, in sixty-fourths of a standard deviation: Lloyd and Max' centroids of the
normal distribution (Max, "Quantizing for Minimum Distortion", 1960, table I), rounded."""

_HEAD: Final = struct.Struct("<BI")
_LANE: Final = 2
_MOST_BITS: Final = len(LEVELS)


_Places: TypeAlias = slice | NDArray[np.bool_]


class _Plan(NamedTuple):
    """What the head says: `2^grain` to fill up to, `bits` for all, one more for `more` of them."""

    grain: int
    bits: int
    more: int


def _least_bytes(size: int) -> int:
    blocks = min(rotation.count_blocks(rotation.filled(size, g)) for g in rotation.grains(size))
    return _HEAD.size + 1 + bfloat16.BYTES * blocks + 1


def _length(total: int, plan: _Plan) -> int:
    head = _HEAD.size + len(varint.write(plan.more))
    return head + bfloat16.BYTES * rotation.count_blocks(total) + -(-_code_bits(total, plan) // 8)


def _code_bits(total: int, plan: _Plan) -> int:
    return total * plan.bits + plan.more


def _plan(size: int, budget: int) -> _Plan:
    """One bit each in the fewest bytes, or the most bits a coordinate that the budget holds."""
    totals = {grain: rotation.filled(size, grain) for grain in rotation.grains(size)}
    if not budget:
        plans = [_Plan(grain, 0, total) for grain, total in totals.items()]
        return min(plans, key=lambda plan: _length(totals[plan.grain], plan))
    plans = [_filling(grain, total, budget) for grain, total in totals.items()]
    return max(plans, key=lambda plan: plan.bits + plan.more / totals[plan.grain])


def _filling(grain: int, total: int, budget: int) -> _Plan:
    """The most bits that fit when the vector is filled up to `total`. None at all: `more` is 0."""
    blocks = bfloat16.BYTES * rotation.count_blocks(total)
    for count_bytes in range(1, 6):
        bits = min(8 * (budget - _HEAD.size - count_bytes - blocks), _MOST_BITS * total)
        plan = _Plan(grain, max(0, bits - 1) // total, 0)
        plan = plan._replace(more=max(0, bits - plan.bits * total))
        if len(varint.write(plan.more)) <= count_bytes:
            break
    return plan


def _encode(vector: Params, ask: Ask, rng: "np.random.Generator") -> bytes:
    needs("eden", _least_bytes(vector.size), ask)
    plan = _plan(vector.size, ask.budget)
    seed = seeded.new_seed(rng)
    total = rotation.filled(vector.size, plan.grain)
    sizes = np.array(rotation.block_sizes(total))
    starts = np.cumsum(sizes) - sizes
    power = frexp(peak(vector))[1]  # the largest magnitude becomes 1/2 .. 1: no sum overflows
    rotated = np.zeros(total, dtype=np.float32)
    rotated[: vector.size] = np.ldexp(vector, -power)
    rotation.rotate(rotated, seed)
    deviations = np.sqrt(np.add.reduceat(rotated * rotated, starts, dtype=np.float64) / sizes)
    rotated *= np.repeat(_inverse(deviations, 64.0), sizes).astype(np.float32)

    magnitudes = np.abs(rotated)
    levels = np.empty(total, dtype=np.float32)
    codes = []
    for width, places in _groups(plan, seed, total):
        nearest, table = _nearest(magnitudes[places], max(1, width))
        levels[places] = table[nearest]
        codes.append(_to_bits(rotated[places] < 0, nearest, width))
    share = total / plan.more if not plan.bits else 1.0
    share *= held_down(ask.gain, pi / 2 * share - 1)
    projections = np.add.reduceat(magnitudes * levels, starts, dtype=np.float64)
    scales = np.ldexp(deviations * _inverse(projections * sizes, 64.0 * share), power)
    head = _HEAD.pack(plan.grain << 3 | plan.bits, seed) + varint.write(plan.more)
    packed = np.packbits(np.concatenate(codes))
    return head + bfloat16.drawn(scales, rng).tobytes() + packed.tobytes()


def _groups(plan: _Plan, seed: int, total: int) -> list[tuple[int, _Places]]:
    """Which coordinates have how many bits, in the order of their codes."""
    if plan.more == total:
        return [(plan.bits + 1, slice(None))]
    marked = seeded.subset(seed, _LANE, plan.more, total)
    return [(plan.bits + 1, marked), (plan.bits, ~marked)]


def _inverse(numbers: NDArray[np.float64], above: float) -> NDArray[np.float64]:
    """`above / numbers`, 0 where a number is 0: a block of zeros stays one."""
    return np.divide(above, numbers, out=np.zeros(numbers.size), where=numbers > 0)


def _nearest(magnitudes: Params, width: int) -> tuple[NDArray[np.uint8], Params]:
    """The numbers of the nearest levels of a code of `width` bits, and the table of the levels."""
    table = np.array(LEVELS[width - 1], dtype=np.float32)
    nearest = np.zeros(magnitudes.size, dtype=np.uint8)
    for border in (table[1:] + table[:-1]) / 2:
        nearest += magnitudes > border
    return nearest, table


def _to_bits(minus: NDArray[np.bool_], nearest: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """The bits of codes of `width` bits, one a byte, highest first. No bits for a width of 0."""
    bits = np.empty((minus.size, width), dtype=np.uint8)
    for place in range(1, width):
        bits[:, place] = nearest >> np.uint8(width - 1 - place) & np.uint8(1)
    if width:
        bits[:, 0] = minus
    return bits.reshape(-1)


def _from_bits(bits: NDArray[np.uint8], width: int) -> Params:
    """The signed levels of codes of `width` bits."""
    codes = np.zeros(bits.size // width, dtype=np.uint8)
    for place in range(width):
        codes <<= np.uint8(1)
        codes |= bits[place::width]
    magnitudes = LEVELS[width - 1]
    table = np.array([*magnitudes, *(-m for m in magnitudes)], dtype=np.float32)
    return table[codes]


def _decode(payload: memoryview, size: int) -> Dense:
    if len(payload) < _HEAD.size:
        raise WireError(Reason.TRUNCATED, f"{len(payload)} bytes are less than the head")
    form, seed = _HEAD.unpack_from(payload)
    more, start = varint.read(payload, _HEAD.size)
    plan = _Plan(form >> 3, form & 7, more)
    if plan.bits >= _MOST_BITS or plan.grain not in rotation.grains(size):
        raise WireError(Reason.MALFORMED, f"{plan.bits} bits, blocks of 2^{plan.grain}")
    total = rotation.filled(size, plan.grain)
    if not 1 <= more <= total:
        raise WireError(Reason.BAD_INDEX, f"{more} of {total} coordinates")
    exactly(payload, _length(total, plan))
    no_spare_bits(payload, _code_bits(total, plan))
    end = start + bfloat16.BYTES * rotation.count_blocks(total)
    scales = bfloat16.read(payload[start:end])
    levels = _levels(payload[end:], total, plan, seed)
    rotation.rotate_back(levels, seed)
    with np.errstate(over="ignore", invalid="ignore"):  # a bad scale is for admission to see
        levels *= np.repeat(scales, rotation.block_sizes(total))
    return Dense(levels[:size])


def _levels(codes: memoryview, total: int, plan: _Plan, seed: int) -> Params:
    """The levels of every rotated coordinate, 0 for what was not sent."""
    packed = np.frombuffer(codes, dtype=np.uint8)
    bits = np.unpackbits(packed, count=_code_bits(total, plan))
    levels = np.zeros(total, dtype=np.float32)
    for width, places in _groups(plan, seed, total):
        if width:
            count = width * (plan.more if width > plan.bits else total - plan.more)
            levels[places], bits = _from_bits(bits[:count], width), bits[count:]
    return levels


EDEN: Final = Codec(
    codec_id=8,
    name="eden",
    error_feedback=False,
    sparse=False,
    encode=_encode,
    decode=_decode,
    least_bytes=_least_bytes,
)
