"""Rules that walk towards their answer in a fixed number of steps.

Every step reads all rows twice; the answer is rounded to float32 after each.
"""

from typing import Final

import numpy as np

from aggregator.strategies.robust.clipping import clip_factors
from aggregator.strategies.robust.stacks import Stacks, lengths_of, median_of, summed
from schemas.params import Params

_NEAR: Final = 1e-6
"""nu, in median distances: who is nearer than this is taken to be so far away."""

_TINY: Final = 1e-30
"""nu where the median distance is nothing."""


def geometric_median(stacks: Stacks, start: Params, count: int, rounds: int) -> Params:
    """Smoothed Weiszfeld steps towards the point with the least sum of distances.

    Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions
    on Signal Processing 70, 2022, Algorithm 2:

        w_i = 1 / max(nu, ||v - x_i||),  v <- sum of w_i x_i / sum of w_i

    Their nu is 1e-6; here it is that many median distances, so that the scale of a model does not
    matter.

    Args:
        stacks: the rows.
        start: v to begin with, shape (size,): one that no outlier chooses. It is overwritten.
        count: K.
        rounds: steps.
    """
    for _ in range(rounds):
        apart = lengths_of(stacks, count, start)
        nu = max(_NEAR * median_of(apart), _TINY)
        weights = [nu / max(nu, distance) for distance in apart]
        total = 0.0
        for weight in weights:
            total += weight
        shares = np.array([weight / total for weight in weights])[:, np.newaxis]
        for span, stack in stacks():
            start[span] = summed(stack * shares)
    return start


def centered_clipping(
    stacks: Stacks, start: Params, count: int, rounds: int, radius: float
) -> Params:
    """Steps from a centre, of which each row decides no more than a radius.

    Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization", ICML
    2021, equation 8 (CClip):

        v <- v + 1 / K sum of (x_i - v) min(1, tau / ||x_i - v||)

    Args:
        stacks: the rows.
        start: v to begin with, shape (size,). It is overwritten.
        count: K.
        rounds: steps.
        radius: tau; 0: in every step the median of the lengths ||x_i - v||.
    """
    for _ in range(rounds):
        apart = lengths_of(stacks, count, start)
        factors = clip_factors(apart, radius or median_of(apart))
        scales = np.array(factors)[:, np.newaxis]
        for span, stack in stacks():
            centre = start[span].astype(np.float64)
            start[span] = centre + summed((stack - centre) * scales) / count
    return start
