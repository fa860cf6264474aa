"""A buffer of rows: contributions wait one by one, so that a rule can compare them.

A row is `weight * delta`, dense float32, and a device has one vote in a buffer: what it sends
beyond that waits for the next buffer, as one row more. The buffer is full when K devices have a
row in it. Then the rule's estimate of the mean row stands in the mean's place. Of fewer rows,
n < K, it is n / K of that: who is absent has contributed zero.

In `state.rows` the first row of a device stands, its second one waits.
"""

from collections.abc import MutableMapping
from itertools import count
from typing import cast

import numpy as np

from aggregator.strategies.robust import combine
from aggregator.strategies.stage import Closed, Stage
from aggregator.strategies.strategy import Contribution, Row, State
from schemas.delta import add_scaled
from schemas.names import DeviceId
from schemas.params import Params
from schemas.strategy import RobustOptions

CENTRE = "centre"
"""The vector with which centered-clipping begins: the last estimate."""


def kept_rows(
    buffer_size: int,
    robust: RobustOptions,
    byzantine: int,
    *,
    by_weights: bool = False,
    notes_delay: bool = False,
) -> Stage:
    """Make the stage.

    Args:
        buffer_size: K.
        robust: the rule.
        byzantine: f.
        by_weights: whether the sum is divided by the sum of the weights, not by K.
        notes_delay: whether the largest staleness is kept, as the scalar `delay`.
    """
    centred = robust.rule == "centered-clipping"

    def begin(params: Params) -> State:
        vectors = {CENTRE: np.zeros_like(params)} if centred else {}
        return State(0, vectors, scalars={"delay": 0.0} if notes_delay else {})

    def add(
        state: State, contribution: Contribution, weight: float
    ) -> tuple[State, frozenset[str]]:
        vectors = _mutable(state)
        own = [row for row in state.rows if row.device == contribution.device]
        rows = list(state.rows)
        if len(own) > 1:  # added to the one that waits
            name = own[-1].name
            rows[rows.index(own[-1])] = Row(name, contribution.device, own[-1].weight + weight)
        else:
            used = {row.name for row in rows}
            name = next(free for free in map("row:{}".format, count()) if free not in used)
            vectors[name] = np.zeros_like(state.vectors["params"])
            rows.append(Row(name, contribution.device, weight))
        add_scaled(vectors[name], contribution.delta, weight)
        scalars = dict(state.scalars)
        if notes_delay:
            scalars["delay"] = max(scalars["delay"], float(contribution.staleness))
        return _with_rows(state, rows, scalars), frozenset({name})

    def close(state: State) -> tuple[State, Closed]:
        vectors = _mutable(state)
        taken, left = _standing(state.rows), list(state.rows)
        values = [vectors[row.name] for row in taken]
        estimate = combine(values, robust, byzantine, vectors.get(CENTRE))
        changed = {row.name for row in taken}
        if centred:
            vectors[CENTRE][:] = estimate
            changed.add(CENTRE)
        whole = float(buffer_size)
        if by_weights:
            whole = sum(row.weight for row in taken) or float(len(taken))
        if len(taken) != whole:
            np.multiply(estimate, np.float32(len(taken) / whole), out=estimate)
        for row in taken:
            left.remove(row)
            del vectors[row.name]
        closed = Closed(
            estimate, np.float32(1), state.scalars.get("delay", 0.0), frozenset(changed)
        )
        return _with_rows(state, left, dict.fromkeys(state.scalars, 0.0)), closed

    return Stage(begin, add, close, _forget)


def _standing(rows: tuple[Row, ...] | list[Row]) -> list[Row]:
    """The first row of every device, oldest first."""
    first: dict[DeviceId, Row] = {}
    for row in rows:
        first.setdefault(row.device, row)
    return list(first.values())


def _with_rows(state: State, rows: list[Row], scalars: dict[str, float]) -> State:
    return State(
        state.version, state.vectors, len(_standing(rows)), scalars, tuple(rows), state.packed
    )


def _forget(state: State, device: DeviceId) -> tuple[State, frozenset[str]]:
    vectors = _mutable(state)
    gone = {row.name for row in state.rows if row.device == device}
    for name in gone:
        del vectors[name]
    rows = [row for row in state.rows if row.device != device]
    return _with_rows(state, rows, dict(state.scalars)), frozenset(gone)


def _mutable(state: State) -> MutableMapping[str, Params]:
    """The vectors belong to the strategy: whoever made the State gave a dict."""
    return cast("MutableMapping[str, Params]", state.vectors)
