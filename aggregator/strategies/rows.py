"""A buffer of rows: contributions wait one by one, so that a rule can compare them.

A row is `weight * delta`, dense float32, and a device has one vote in a buffer: what it sends
beyond that waits for the next buffer, as one row more, the mean of all that waits. The buffer is
full when K devices have a row in it. Then the rule's estimate of the mean row stands in the mean's
place. Of fewer rows, n < K, it is n / K of that: who is absent has contributed zero. Where even
2 f + 1 are not there, rows of zeros make up for them, since f could lie and be the most.

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
        notes_delay: whether the step is told the largest staleness.
    """
    centred = robust.rule == "centered-clipping"

    def begin(params: Params) -> State:
        vectors = {CENTRE: np.zeros_like(params)} if centred else {}
        return State(0, vectors)

    def add(
        state: State, contribution: Contribution, weight: float
    ) -> tuple[State, frozenset[str]]:
        vectors = _mutable(state)
        own = [row for row in state.rows if row.device == contribution.device]
        rows, stale = list(state.rows), contribution.staleness
        if len(own) > 1:
            row = _joined(own[-1], weight, stale)
            rows[rows.index(own[-1])] = row
            np.multiply(vectors[row.name], np.float32(1 - 1 / row.count), out=vectors[row.name])
        else:
            used = {row.name for row in rows}
            name = next(free for free in map("row:{}".format, count()) if free not in used)
            vectors[name] = np.zeros_like(state.vectors["params"])
            row = Row(name, contribution.device, weight, stale)
            rows.append(row)
        add_scaled(vectors[row.name], contribution.delta, weight / row.count)
        return _with_rows(state, rows), frozenset({row.name})

    def close(state: State) -> tuple[State, Closed]:
        vectors = _mutable(state)
        taken, left = _standing(state.rows), list(state.rows)
        values = [vectors[row.name] for row in taken]
        absent = max(0, 2 * byzantine + 1 - len(taken))
        values += [np.zeros_like(values[0])] * absent
        estimate = combine(values, robust, byzantine, vectors.get(CENTRE))
        changed = {row.name for row in taken}
        if centred:
            vectors[CENTRE][:] = estimate
            changed.add(CENTRE)
        whole = float(buffer_size)
        if by_weights:
            whole = sum(row.weight for row in taken) + absent or float(len(values))
        if len(values) != whole:
            np.multiply(estimate, np.float32(len(values) / whole), out=estimate)
        for row in taken:
            left.remove(row)
            del vectors[row.name]
        delay = float(max(row.delay for row in taken)) if notes_delay else 0.0
        closed = Closed(estimate, np.float32(1), delay, frozenset(changed))
        return _with_rows(state, left), closed

    return Stage(begin, add, close, _forget)


def _standing(rows: tuple[Row, ...] | list[Row]) -> list[Row]:
    """The first row of every device, oldest first."""
    first: dict[DeviceId, Row] = {}
    for row in rows:
        first.setdefault(row.device, row)
    return list(first.values())


def _joined(row: Row, weight: float, stale: int) -> Row:
    """A waiting row with one contribution more of its device."""
    many = row.count + 1
    mean = row.weight + (weight - row.weight) / many
    return Row(row.name, row.device, mean, max(row.delay, stale), many)


def _with_rows(state: State, rows: list[Row]) -> State:
    return State(
        state.version,
        state.vectors,
        len(_standing(rows)),
        state.scalars,
        tuple(rows),
        state.packed,
    )


def _forget(state: State, device: DeviceId) -> tuple[State, frozenset[str]]:
    vectors = _mutable(state)
    gone = {row.name for row in state.rows if row.device == device}
    for name in gone:
        del vectors[name]
    rows = [row for row in state.rows if row.device != device]
    return _with_rows(state, rows), frozenset(gone)


def _mutable(state: State) -> MutableMapping[str, Params]:
    """The vectors belong to the strategy: whoever made the State gave a dict."""
    return cast("MutableMapping[str, Params]", state.vectors)
