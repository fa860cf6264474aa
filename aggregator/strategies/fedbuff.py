"""FedBuff: buffered asynchronous aggregation.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
arXiv 2106.06639, Algorithm 1, with delta = w_local - w_base (added):

    B <- B + S(s) delta                      on every contribution
    when K have come:  m <- beta m + B / K   divided by K, never by the sum of the weights
                       w <- w + eta_g m
                       B <- 0

A fresh contribution weighs exactly 1; num_examples weighs nothing unless asked. A flush folds a
partial buffer and still divides by K: who is absent has contributed zero, not vanished.

Buffers of the model (BatchNorm's statistics) are no descent: there the step is w <- w + B / K, an
average of what the devices measured, without server rate and momentum.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from aggregator.staleness import StalenessWeight
from aggregator.strategies.strategy import (
    Advanced,
    Buffered,
    Contribution,
    Outcome,
    State,
    Strategy,
    Unchanged,
    Views,
)
from schemas.delta import BLOCK, add_scaled
from schemas.params import Params

_ALL: Final = frozenset({"params", "total", "momentum"})
_TOTAL: Final = frozenset({"total"})


def fedbuff(
    *,
    buffer_size: int,
    weigh: StalenessWeight,
    server_lr: float = 1.0,
    momentum: float = 0.0,
    example_share: Callable[[int], float] = lambda _num_examples: 1.0,
    buffers: tuple[slice, ...] = (),
) -> Strategy:
    """Make the strategy.

    Args:
        buffer_size: K.
        weigh: S(s).
        server_lr: eta_g.
        momentum: beta, 0 for none (then no vector is kept for it).
        example_share: num_examples -> factor in (0, 1].
        buffers: where the vectors hold statistics that are averaged, not trained.
    """
    rate = np.float32(server_lr)
    beta = np.float32(momentum)
    size = np.float32(buffer_size)

    def init(params: Params) -> State:
        vectors = {"params": params.copy(), "total": np.zeros_like(params)}
        if momentum:
            vectors["momentum"] = np.zeros_like(params)
        return State(0, vectors)

    def advance(state: State, weight: float) -> tuple[State, Advanced]:
        vectors = state.vectors
        for span in buffers:
            _average(vectors["params"][span], vectors["total"][span], size)
        _step(
            vectors["params"],
            vectors["total"],
            vectors.get("momentum"),
            size=size,
            beta=beta,
            rate=rate,
        )
        return State(state.version + 1, vectors), Advanced(weight, _ALL & vectors.keys())

    def fold(state: State, contribution: Contribution, _views: Views) -> tuple[State, Outcome]:
        weight = weigh(contribution.staleness) * example_share(contribution.num_examples)
        weight *= contribution.scale
        add_scaled(state.vectors["total"], contribution.delta, weight)
        state = State(state.version, state.vectors, state.buffered + 1)
        if state.buffered < buffer_size:
            return state, Buffered(weight, _TOTAL)
        return advance(state, weight)

    def flush(state: State) -> tuple[State, Advanced | Unchanged]:
        return advance(state, 0.0) if state.buffered else (state, Unchanged())

    return Strategy(init, fold, flush)


def _average(params: Params, total: Params, size: np.float32) -> None:
    """Do w += B / K, B = 0, in place: what `_step` finds there afterwards is zero."""
    np.divide(total, size, out=total)
    np.add(params, total, out=params)
    total.fill(0)


def _step(
    params: Params,
    total: Params,
    momentum: Params | None,
    *,
    size: np.float32,
    beta: np.float32,
    rate: np.float32,
) -> None:
    """Do m = beta m + B / K, w += eta m, B = 0, in place and in blocks."""
    for start in range(0, params.size, BLOCK):
        span = slice(start, start + BLOCK)
        mean = total[span]
        np.divide(mean, size, out=mean)
        if momentum is not None:
            memory = momentum[span]
            np.multiply(memory, beta, out=memory)
            np.add(memory, mean, out=memory)
            np.multiply(memory, rate, out=mean)
        elif rate != 1:
            np.multiply(mean, rate, out=mean)
        np.add(params[span], mean, out=params[span])
        mean.fill(0)
