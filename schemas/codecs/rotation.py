"""A seeded random rotation of a vector of any length: what it becomes is as good as normal.

Every coordinate is spread over a whole block, so that a heavy one and a light one look alike, and a
quantiser that knows only the normal distribution fits every vector.

The vector is filled up with zeros to a multiple of `2^g` and cut into blocks whose sizes are powers
of two: as many of 65,536 as there are, then one for every power of two in the rest, descending.
Over each block, twice: seeded signs, then the Hadamard matrix, as a butterfly of float32 sums.

    for lane in 0, 1:
        w[j] = -w[j] where sign j of the lane is minus (j counts over all blocks)
        for (h = P / 2; h >= 1; h /= 2)
            w[j], w[j + h] = w[j] + w[j + h], w[j] - w[j + h] for every j of the block without bit h

Twice, because once is not enough: a block with one or two dominant coordinates stays far from
normal after one round, and a sign quantiser is then biased by up to a half (measured; 0.0 after
two). The way back is the same steps in the opposite order: lane 1, butterfly before signs. Nothing
is divided: there and back multiplies by `P^2`.

The butterflies are elementwise sums in a fixed order, so that decoding gives the same bits on every
CPU.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from schemas.codecs.negate import negate
from schemas.codecs.seeded import minus_signs
from schemas.params import Params

LARGEST: Final = 16
"""log2 of the largest block."""

SMALLEST: Final = 6
"""The least `g`: a block of 64 is as good as normal, smaller ones are not."""

_ROW: Final = 64
_LANES: Final = (0, 1)


def grains(size: int) -> range:
    """Every `g` that a vector of `size` may be filled up to: blocks are never twice as large."""
    return range(SMALLEST, max(SMALLEST, min(LARGEST, (size - 1).bit_length())) + 1)


def filled(size: int, grain: int) -> int:
    """Coordinates after filling up."""
    return -(-size >> grain) << grain


def count_blocks(total: int) -> int:
    """How many blocks `total` coordinates make."""
    return (total >> LARGEST) + (total & ((1 << LARGEST) - 1)).bit_count()


def block_sizes(total: int) -> list[int]:
    """The sizes of the blocks, in order."""
    rest = total & ((1 << LARGEST) - 1)
    powers = [1 << g for g in reversed(range(LARGEST)) if rest >> g & 1]
    return [1 << LARGEST] * (total >> LARGEST) + powers


def rotate(vector: Params, seed: int) -> None:
    """Rotate in place; every block grows by its size in length. The size is a `filled` one."""
    for lane in _LANES:
        _flip(vector, seed, lane)
        _butterflies(vector)


def rotate_back(vector: Params, seed: int) -> None:
    """Undo `rotate` in place, but for a factor of P^2 in a block of P."""
    for lane in reversed(_LANES):
        _butterflies(vector)
        _flip(vector, seed, lane)


def _flip(vector: Params, seed: int, lane: int) -> None:
    negate(vector, minus_signs(seed, lane, vector.size))


def _blocks(vector: Params) -> Iterator[Params]:
    start = 0
    for size in block_sizes(vector.size):
        yield vector[start : start + size]
        start += size


def _butterflies(vector: Params) -> None:
    """The long strides over the rows of a table, the short ones over those of its transpose."""
    for block in _blocks(vector):
        table = block.reshape(-1, _ROW)
        _over_rows(table)
        turned = np.ascontiguousarray(table.T)
        _over_rows(turned)
        table[:] = turned.T


def _over_rows(table: Params) -> None:
    """The butterfly over the first axis of a contiguous table, in place."""
    rows, row = table.shape
    half = rows // 2
    while half:
        pairs = table.reshape(rows // (2 * half), 2, half * row)
        upper, lower = pairs[:, 0], pairs[:, 1]
        differences = upper - lower
        upper += lower
        lower[:] = differences
        half //= 2
