"""From the rows of a buffer to one vector in their mean's place: clip, then mix, then the rule."""

from collections.abc import Callable, Sequence

import numpy as np

from aggregator.exact import Doubles
from aggregator.strategies.robust.clipping import clip_factors
from aggregator.strategies.robust.coordinates import mean, median, trimmed_mean
from aggregator.strategies.robust.iterative import centered_clipping, geometric_median
from aggregator.strategies.robust.krum import best_rows
from aggregator.strategies.robust.mixing import mixed, neighbours
from aggregator.strategies.robust.stacks import (
    Stack,
    Stacks,
    lengths_of,
    median_of,
    squared_distances,
    stacked,
)
from schemas.errors import InvariantError
from schemas.params import Params
from schemas.strategy import RobustOptions


def combine(
    rows: Sequence[Params], options: RobustOptions, byzantine: int, centre: Params | None = None
) -> Params:
    """Estimate the mean of the honest among the rows: a fresh float32 vector, shape (size,).

    The same bits on every CPU. Rows that are equal give that row.

    Args:
        rows: n weighted deltas, at least one, finite float32, shape (size,), oldest first. They
            stay as they are.
        options: the table.
        byzantine: f. Where n is too small for it, each rule says what it does.
        centre: where centered clipping begins, shape (size,): the last estimate; None: zero.

    Raises:
        InvariantError: there are no rows.
    """
    if not rows:
        msg = "there is nothing to combine"
        raise InvariantError(msg)
    stacks = _prepared(rows, options, byzantine)
    count, size = len(rows), rows[0].size
    match options.rule:
        case "mean":
            return _each(stacks, size, mean)
        case "median":
            return _each(stacks, size, median)
        case "trimmed-mean":
            return _each(stacks, size, lambda stack: trimmed_mean(stack, byzantine))
        case "krum" | "multi-krum":
            wanted = 1 if options.rule == "krum" else count - byzantine
            best = best_rows(squared_distances(stacks, count), byzantine, wanted)
            return _each(stacks, size, lambda stack: mean(stack[best]))
        case "geometric-median":
            start = _each(stacks, size, median)
            return geometric_median(stacks, start, count, options.rounds)
        case "centered-clipping":
            start = np.zeros(size, dtype=np.float32) if centre is None else centre.copy()
            return centered_clipping(stacks, start, count, options.rounds, options.clip_norm)


def _prepared(rows: Sequence[Params], options: RobustOptions, byzantine: int) -> Stacks:
    """The rows as the rule is to see them: clipped and mixed as the table says."""
    stacks, count = stacked(rows), len(rows)
    if options.clip != "none":
        lengths = lengths_of(stacks, count)
        radius = median_of(lengths) if options.clip == "median" else options.clip_norm
        stacks = stacked(rows, clip_factors(lengths, radius))
    if options.mix == "nearest" and count > 1:
        stacks = mixed(stacks, neighbours(squared_distances(stacks, count), byzantine))
    return stacks


def _each(stacks: Stacks, size: int, rule: Callable[[Stack], Doubles]) -> Params:
    """Apply a rule to every block, and round what it gives to float32."""
    made = np.empty(size, dtype=np.float32)
    for span, stack in stacks():
        made[span] = rule(stack)
    return made
