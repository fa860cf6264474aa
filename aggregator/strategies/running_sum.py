"""A buffer that is a running sum: contributions are added as they come, nobody is remembered.

    B <- B + w delta

It is divided by K, or by what is there when merged contributions overshoot K, or by the sum of
the weights.
"""

from collections.abc import Callable

import numpy as np

from aggregator.strategies.stage import Closed, Stage
from aggregator.strategies.strategy import Contribution, State, remembers_nobody
from schemas.delta import add_scaled
from schemas.params import Params


def running_sum(buffer_size: int, *, by_weights: bool = False, notes_delay: bool = False) -> Stage:
    """Make the stage.

    Args:
        buffer_size: K.
        by_weights: whether the sum is divided by the sum of the weights.
        notes_delay: whether the largest staleness is kept, as the scalar `delay`.
    """
    changed = frozenset({"total"})

    def begin(params: Params) -> State:
        scalars = {"weights": 0.0} if by_weights else {}
        scalars |= {"delay": 0.0} if notes_delay else {}
        return State(0, {"total": np.zeros_like(params)}, scalars=scalars)

    def add(
        state: State, contribution: Contribution, weight: float
    ) -> tuple[State, frozenset[str]]:
        add_scaled(state.vectors["total"], contribution.delta, weight)
        scalars = dict(state.scalars)
        if by_weights:
            scalars["weights"] += weight * contribution.carried
        if notes_delay:
            scalars["delay"] = max(scalars["delay"], float(contribution.staleness))
        buffered = state.buffered + contribution.contributions
        return state.with_buffer(buffered, scalars), changed

    def close(state: State) -> tuple[State, Closed]:
        divisor = float(max(buffer_size, state.buffered))
        if by_weights:
            divisor = state.scalars["weights"] or 1.0
        closed = Closed(
            state.vectors["total"], np.float32(divisor), state.scalars.get("delay", 0.0), changed
        )
        return state.with_buffer(0, dict.fromkeys(state.scalars, 0.0)), closed

    forget: Callable[..., tuple[State, frozenset[str]]] = remembers_nobody
    return Stage(begin, add, close, forget)
