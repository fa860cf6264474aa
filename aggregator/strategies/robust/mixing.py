"""Nearest-neighbour mixing: each row becomes the mean of the K - f rows nearest to it.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, "Fixing by Mixing: A Recipe for Optimal
Byzantine ML under Heterogeneity", AISTATS 2023, Algorithm 2:

    y_i = 1 / (K - f) sum of x_j over the K - f nearest to x_i, itself included

Ties go to the row that came first. It is what makes rules that look at one coordinate at a time
work where devices differ, or where most of them leave a coordinate out.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from aggregator.exact import Doubles
from aggregator.strategies.robust.stacks import Stack, Stacks, summed


def neighbours(distances: Doubles, byzantine: int) -> list[list[int]]:
    """For every row the K - f nearest, at least itself, in the order of the rows.

    Args:
        distances: squared, float64, shape (K, K).
        byzantine: f.
    """
    count = len(distances)
    kept = max(1, count - byzantine)
    found = []
    for i, from_here in enumerate(distances.tolist()):
        others = sorted((j for j in range(count) if j != i), key=lambda j: from_here[j])
        found.append(sorted([i, *others[: kept - 1]]))
    return found


def mixed(stacks: Stacks, near: Sequence[Sequence[int]]) -> Stacks:
    """Read the means of neighbours, rounded to float32, in the rows' place."""

    def blocks() -> Iterator[tuple[slice, Stack]]:
        for span, stack in stacks():
            means = np.empty_like(stack)
            for i, group in enumerate(near):
                means[i] = (summed(stack[group]) / len(group)).astype(np.float32)
            means += np.float32(0)  # no -0: where it is sorted among zeros differs between CPUs
            yield span, means

    return blocks
