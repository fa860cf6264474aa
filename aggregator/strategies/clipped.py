"""Clipping to a fixed length, for strategies that do not keep rows: `clip = "fixed"`.

    delta <- delta min(1, clip_norm / ||delta||)

before the strategy sees it, whatever the strategy is. The factor is rounded to float32. Where rows
are kept, `robust.combine` clips them, after their weights.
"""

from dataclasses import replace

import numpy as np

from aggregator.strategies.robust import clip_factor, length_of, summed_up
from aggregator.strategies.strategy import Contribution, Outcome, State, Strategy, Views
from schemas.delta import Dense, Sparse


def clipped(strategy: Strategy, radius: float) -> Strategy:
    """The same strategy, to which no delta longer than `radius` comes."""

    def fold(state: State, contribution: Contribution, views: Views) -> tuple[State, Outcome]:
        delta = summed_up(contribution.delta)
        factor = np.float32(clip_factor(length_of(delta), radius))
        if factor < 1:
            values = delta.values * factor
            short = Dense(values) if isinstance(delta, Dense) else Sparse(delta.indices, values)
            contribution = replace(contribution, delta=short)
        return strategy.fold(state, contribution, views)

    return replace(strategy, fold=fold)
