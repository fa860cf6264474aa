"""Rows in blocks: what clipping and mixing make of them is made block by block, and never kept.

A rule reads its rows through `Stacks`, as often as it likes, so that beyond the rows themselves
only K * SPAN numbers are held. Pure.
"""

from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from typing import TypeAlias

import numpy as np

from aggregator.exact import SPAN, Doubles, tree_sums
from schemas.params import Params

Stack: TypeAlias = Doubles
"""K float32 rows of one block, spelt as float64, shape (K, at most SPAN)."""

Stacks: TypeAlias = Callable[[], Iterator[tuple[slice, Stack]]]
"""Where each block lies, and its rows, which are the reader's to overwrite."""


def stacked(rows: Sequence[Params], factors: Sequence[float] | None = None) -> Stacks:
    """Read rows of one shape (size,); each times its factor, rounded to float32, if any is given.

    No element is -0.0: where it would be sorted to among zeros is not the same on every CPU.
    """

    def blocks() -> Iterator[tuple[slice, Stack]]:
        for start in range(0, rows[0].size, SPAN):
            span = slice(start, start + SPAN)
            stack = np.empty((len(rows), rows[0][span].size), dtype=np.float64)
            for i, row in enumerate(rows):
                stack[i] = row[span] if factors is None else row[span] * np.float32(factors[i])
            stack += 0.0
            yield span, stack

    return blocks


def summed(stack: Stack) -> Doubles:
    """Add up the rows of a block in order: float64, shape (span,)."""
    total: Doubles = stack[0].copy()
    for row in stack[1:]:
        total += row
    return total


def lengths_of(stacks: Stacks, count: int, centre: Params | None = None) -> list[float]:
    """The Euclidean length of each of `count` rows, or its distance from a centre (size,)."""
    totals = np.zeros(count, dtype=np.float64)
    for span, stack in stacks():
        apart = stack if centre is None else stack - centre[span]
        totals += tree_sums(apart * apart)
    return [sqrt(total) for total in totals.tolist()]


def squared_distances(stacks: Stacks, count: int) -> Doubles:
    """Squared Euclidean distances of `count` rows from one another: float64, (count, count)."""
    totals = np.zeros((count, count), dtype=np.float64)
    for _, stack in stacks():
        for i in range(count - 1):
            apart = stack[i + 1 :] - stack[i]
            apart *= apart
            totals[i, i + 1 :] += tree_sums(apart)
    for i in range(count):
        totals[i + 1 :, i] = totals[i, i + 1 :]
    return totals


def median_of(numbers: Sequence[float]) -> float:
    """The middle number, or the mean of the two in the middle."""
    ordered = sorted(numbers)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return low if low == high else 0.5 * low + 0.5 * high
