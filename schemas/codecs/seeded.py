"""Random numbers that both sides draw from a seed that travels: 4 bytes, and no mask.

splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014) as
a counter: number `i` of lane `lane` under `seed` is

    z = lane * 2^32 + seed + (i + 1) * 0x9e3779b97f4a7c15
    z = (z xor (z >> 30)) * 0xbf58476d1ce4e5b9
    z = (z xor (z >> 27)) * 0x94d049bb133111eb
    z xor (z >> 31)

in unsigned 64-bit arithmetic that wraps. A lane is a stream of its own; a codec that draws for two
purposes takes two. Nothing here depends on numpy's generators, on the CPU or on its byte order.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_STEP: Final = 0x9E3779B97F4A7C15
_WRAP: Final = (1 << 64) - 1


def new_seed(rng: "np.random.Generator") -> int:
    """A seed to send: 0 .. 2^32-1."""
    return int(rng.integers(1 << 32))


def words(seed: int, lane: int, count: int, start: int = 0) -> NDArray[np.uint64]:
    """Numbers `start` .. `start + count - 1` of a lane: uint64, each uniform.

    Args:
        seed: 0 .. 2^32-1.
        lane: 0 .. 2^32-1.
        count: how many.
        start: where in the lane.
    """
    first = (lane << 32) + seed + (start + 1) * _STEP & _WRAP
    z = np.arange(count, dtype=np.uint64)
    z *= np.uint64(_STEP)
    z += np.uint64(first)
    _mix(z)
    return z


def _mix(z: NDArray[np.uint64]) -> None:
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)


def minus_signs(seed: int, lane: int, count: int) -> NDArray[np.bool_]:
    """Which of `count` signs are minus: sign `j` is bit `j mod 64` of word `j div 64`, 1 for minus.

    Bit 0 is the lowest. 64 signs cost one word.
    """
    drawn = words(seed, lane, -(-count // 64)).astype("<u8", copy=False)
    bits = np.unpackbits(drawn.view(np.uint8), count=count, bitorder="little")
    return bits.view(np.bool_)


def subset(seed: int, lane: int, count: int, size: int) -> NDArray[np.bool_]:
    """A uniform subset of `count` of `size` places, as a mask of shape (size,).

    Draw places one after another, word `x` naming place `((x >> 28) * size) >> 36`, and mark each,
    until `count` are marked. When `count` is more than half, mark in this way those that are left
    out. Fewer than 1.4 draws a mark on average. A place's chance differs from another's by less
    than `size / 2^36` of itself.

    Args:
        seed: 0 .. 2^32-1.
        lane: 0 .. 2^32-1.
        count: 0 .. size.
        size: at most 2^28.
    """
    marked = np.zeros(size, dtype=np.bool_)
    wanted = min(count, size - count)
    drawn = done = 0
    while done < wanted:  # as many draws as are missing can never mark too many
        missing = wanted - done
        places = words(seed, lane, missing, drawn)
        places >>= np.uint64(28)
        places *= np.uint64(size)
        places >>= np.uint64(36)
        marked[places] = True
        drawn += missing
        done = int(np.count_nonzero(marked))
    return marked if wanted == count else ~marked
