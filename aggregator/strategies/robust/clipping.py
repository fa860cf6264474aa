"""Clipping: no contribution is longer than a radius.

x_i <- x_i min(1, tau / ||x_i||). With the median length as tau, less than half of the rows cannot
choose it at will. Every length is the row's own, so an attacker is only shortened, never heard
less: a rule must follow. Section 3 of Karimireddy et al., ICML 2021, calls this CClip with v = 0.
"""

from collections.abc import Sequence


def clip_factor(length: float, radius: float) -> float:
    """min(1, radius / length): 1 for a row of no length."""
    return 1.0 if length <= radius else radius / length


def clip_factors(lengths: Sequence[float], radius: float) -> list[float]:
    """By what each row is to be multiplied so that it is no longer than the radius."""
    return [clip_factor(length, radius) for length in lengths]
