"""Chance that depends on names alone: the same numbers give the same draw, in any order. Pure.

Nothing is kept for a device that is only looked at: its traits are drawn again when they are asked.
"""

from statistics import NormalDist
from typing import Final

import numpy as np

TRAITS: Final = 11
LIVES: Final = 12
PHASE: Final = 13
WAKE: Final = 14
LOST: Final = 15
CODEC: Final = 16
LINKS: Final = 17
CHOICE: Final = 18
BOOT: Final = 19
CLASSES: Final = 20

_MASK: Final = (1 << 64) - 1
_NORMAL: Final = NormalDist()


def chance(seed: int, stream: int, *numbers: int) -> float:
    """Uniform in (0, 1)."""
    return (bits(seed, stream, *numbers) // 2048 + 0.5) * 2.0**-53


def normal(seed: int, stream: int, *numbers: int) -> float:
    """Of the standard normal distribution."""
    return _NORMAL.inv_cdf(chance(seed, stream, *numbers))


def bits(seed: int, stream: int, *numbers: int) -> int:
    """64 bits: splitmix64 over the numbers (Steele, Lea and Flood, OOPSLA 2014)."""
    value = _mixed(seed)
    for number in (stream, *numbers):
        value = _mixed(value ^ number)
    return value


def generator(seed: int, stream: int, *numbers: int) -> np.random.Generator:
    """A generator of its own for these numbers."""
    return np.random.Generator(np.random.PCG64([seed, stream, *numbers]))


def _mixed(value: int) -> int:
    z = (value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
