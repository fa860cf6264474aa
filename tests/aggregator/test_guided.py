"""The server's own step comes through the log, is kept in the checkpoint, and guards from there."""

import numpy as np
import pytest

from schemas.errors import InvariantError
from schemas.log import Guided
from schemas.outcomes import Reason
from schemas.strategy import RobustOptions
from tests.aggregator.world import SIZE, Store, World, make_spec

GUARDED = make_spec(robust=RobustOptions(guard="zeno++"))


def guide(*values: float) -> Guided:
    return Guided(0, np.array(values or [1.0] * SIZE, dtype="<f4").tobytes())


def last_outcome(world: World) -> int:
    return next(iter(world.changes().answers.values())).outcome


def test_updates_are_compared_with_the_step_from_its_entry_on():
    world = World(GUARDED)
    world.send(-world.ones)
    assert world.state.model.version == 1
    world.append(guide())
    world.send(-world.ones)
    assert last_outcome(world) == Reason.OUTLIER
    assert world.state.model.version == 1
    world.send(9 * world.ones)
    assert world.state.model.version == 2
    assert world.model == pytest.approx(np.arange(SIZE))  # one back, and one on: not nine


def test_the_step_outlives_the_aggregator():
    world, store = World(GUARDED), Store()
    world.append(guide())
    store.commit(world.fold)
    world.fold = store.load()
    assert world.state.model.vectors["guide"].tolist() == [1.0] * SIZE
    world.send(-world.ones)
    assert last_outcome(world) == Reason.OUTLIER


def test_where_no_guard_is_asked_for_no_step_is_kept():
    world = World(make_spec())
    world.append(guide())
    assert "guide" not in world.state.model.vectors


def test_a_step_of_another_size_stops_the_fold():
    world = World(GUARDED)
    with pytest.raises(InvariantError, match="a guide of 2 numbers for 8"):
        world.append(guide(1, 2))
