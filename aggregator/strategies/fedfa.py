"""FedFa: the model is the mean of the last K local models, and every one makes a version.

Xu et al., "FedFa: A Fully Asynchronous Training Paradigm for Federated Learning", IJCAI 2024,
arXiv 2404.11015:

    the oldest of the window goes, x_base + delta comes,   x <- (1 / K) sum of the window

Defaults: every local model weighs 1. x_base is the *published* model the device trained from. The
window starts with K copies of the initial model, so that the first versions stay near it. K models
are kept, and all are added up anew each time: no rounding is carried on. A weight a below 1, where
a task asks for one, puts x + a (x_base + delta - x) into the window.
"""

from collections.abc import Callable

import numpy as np

from aggregator.staleness import StalenessWeight, constant
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


def fedfa(
    *,
    buffer_size: int,
    views: int,
    weigh: StalenessWeight | None = None,
    example_share: Callable[[int], float] = lambda _num_examples: 1.0,
) -> Strategy:
    """Make the strategy: `buffer_size` is K, `views` how many published models are kept."""
    names = [f"window:{buffer_size}:{place}" for place in range(buffer_size)]
    weighs = weigh or constant()

    def init(params: Params) -> State:
        return State(0, {"params": params.copy()} | {name: params.copy() for name in names})

    def fold(state: State, contribution: Contribution, views: Views) -> tuple[State, Outcome]:
        weight = weighs(contribution.staleness) * example_share(contribution.num_examples)
        weight *= contribution.scale
        oldest = names[state.version % buffer_size]
        params, local = state.vectors["params"], state.vectors[oldest]
        np.copyto(local, views[contribution.base_version])
        add_scaled(local, contribution.delta, 1.0)
        if weight != 1:
            np.subtract(local, params, out=local)
            np.multiply(local, np.float32(weight), out=local)
            np.add(local, params, out=local)
        _mean(params, [state.vectors[name] for name in names])
        return state.next_version(), Advanced(weight, frozenset({"params", oldest}))

    def flush(state: State) -> tuple[State, Unchanged]:
        return state, Unchanged()

    return Strategy(init, fold, flush, views)


def _mean(params: Params, window: list[Params]) -> None:
    """Do x = (1 / K) sum of the window, in its order, in blocks."""
    size = np.float32(len(window))
    for start in range(0, params.size, BLOCK):
        span = slice(start, start + BLOCK)
        total = params[span]
        np.copyto(total, window[0][span])
        for local in window[1:]:
            np.add(total, local[span], out=total)
        np.divide(total, size, out=total)
