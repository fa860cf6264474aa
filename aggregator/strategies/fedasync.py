"""FedAsync: every contribution makes a version.

Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934, Algorithm 1:

    x <- (1 - a) x + a x_new,   a = alpha S(s)

A device sends delta = x_new - V_base, where V_base is the *published* model it trained from, so
the mixing is done against published views (V_now is the newest of them):

    x <- x + a (delta + V_base - V_now)

which is the paper's line when every version is published exactly. num_examples weighs nothing
unless asked.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from aggregator.staleness import StalenessWeight
from aggregator.strategies.strategy import (
    Advanced,
    Contribution,
    Outcome,
    State,
    Strategy,
    Unchanged,
    Views,
)
from schemas.delta import BLOCK, add_scaled
from schemas.params import Params

_PARAMS: Final = frozenset({"params"})


def fedasync(
    *,
    alpha: float,
    weigh: StalenessWeight,
    views: int,
    example_share: Callable[[int], float] = lambda _num_examples: 1.0,
) -> Strategy:
    """Make the strategy.

    Args:
        alpha: the mixing rate.
        weigh: S(s).
        views: how many published models are kept; admission refuses an older base.
        example_share: num_examples -> factor in (0, 1].
    """

    def init(params: Params) -> State:
        return State(0, {"params": params.copy()})

    def fold(state: State, contribution: Contribution, views: Views) -> tuple[State, Outcome]:
        share = example_share(contribution.num_examples)
        weight = alpha * weigh(contribution.staleness) * share * contribution.scale
        params = state.vectors["params"]
        newest = max(views)
        if contribution.base_version != newest:
            _add_drift(params, views[contribution.base_version], views[newest], weight)
        add_scaled(params, contribution.delta, weight)
        return State(state.version + 1, state.vectors), Advanced(weight, _PARAMS)

    def flush(state: State) -> tuple[State, Unchanged]:
        return state, Unchanged()

    return Strategy(init, fold, flush, views)


def _add_drift(params: Params, base: Params, now: Params, weight: float) -> None:
    """Do x += a (V_base - V_now) in place and in blocks."""
    scale = np.float32(weight)
    for start in range(0, params.size, BLOCK):
        span = slice(start, start + BLOCK)
        drift = base[span] - now[span]
        np.multiply(drift, scale, out=drift)
        np.add(params[span], drift, out=params[span])
