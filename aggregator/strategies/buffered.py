"""A buffered strategy: a stage in which K contributions wait, and a step that takes their mean.

Buffers of the model (BatchNorm's statistics) are no descent: there the step is w <- w + B / K, an
average of what the devices measured, without server rate, momentum and adaptation.
"""

from collections.abc import Callable

import numpy as np

from aggregator.strategies.stage import Stage
from aggregator.strategies.step import Step
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
from schemas.params import Params

Weigh = Callable[[Contribution], float]
"""A contribution -> its weight, its own scale not counted."""


def buffered(
    buffer_size: int, weigh: Weigh, stage: Stage, step: Step, buffers: tuple[slice, ...] = ()
) -> Strategy:
    """Compose.

    Args:
        buffer_size: K.
        weigh: the weight of one of its devices; it is added as often as it has contributions.
        stage: where contributions wait.
        step: what the mean does.
        buffers: where the vectors hold statistics that are averaged, not trained.
    """

    def init(params: Params) -> State:
        beside = stage.begin(params)
        vectors = {"params": params.copy(), **beside.vectors, **step.begin(params)}
        return State(0, vectors, scalars=beside.scalars)

    def advance(state: State, weight: float) -> tuple[State, Advanced]:
        state, closed = stage.close(state)
        for span in buffers:
            _average(state.vectors["params"][span], closed.total[span], closed.divisor)
        changed = step.apply(state.vectors, closed) | closed.changed
        return state.next_version(), Advanced(weight, changed)

    def fold(state: State, contribution: Contribution, _views: Views) -> tuple[State, Outcome]:
        weight = weigh(contribution) * contribution.scale
        if contribution.contributions != 1:
            weight *= contribution.contributions
        state, changed = stage.add(state, contribution, weight)
        if state.buffered < buffer_size:
            return state, Buffered(weight, changed)
        state, advanced = advance(state, weight)
        return state, Advanced(weight, advanced.changed | changed)

    def flush(state: State) -> tuple[State, Advanced | Unchanged]:
        return advance(state, 0.0) if state.buffered else (state, Unchanged())

    return Strategy(init, fold, flush, forget=stage.forget)


def _average(params: Params, total: Params, size: np.float32) -> None:
    """Do w += B / K, B = 0, in place: what the step finds there afterwards is zero."""
    np.divide(total, size, out=total)
    np.add(params, total, out=params)
    total.fill(0)
