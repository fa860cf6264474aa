"""What the fold does for its strategies: fairness, refusals, merged updates, erasure, the guide."""

import numpy as np
import pytest

from aggregator.carrying import GUIDE
from aggregator.fairness import Shares, shares_of
from schemas.log import DeviceErased, Guided, ModelSet
from schemas.names import DeviceId
from schemas.outcomes import FOLDED, Reason
from schemas.strategy import RobustOptions
from tests.aggregator.world import SIZE, Store, World, image, make_spec

A, B = DeviceId("a"), DeviceId("b")
ROWS = RobustOptions(rule="median")
ZEROS = np.zeros(SIZE, np.float32)


def vector(value):
    return np.full(SIZE, value, np.float32)


def world(**strategy):
    return World(make_spec(**strategy), ZEROS)


def outcome_of(found, device):
    return found.fold.changes.answers[DeviceId(device)].outcome


# -- fairness ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "fairness", "factor"), [(8, 1.0, 0.5), (8, 2.0, 0.25), (8, 0.0, 1.0), (4, 1.0, 1.0)]
)
def test_the_factor_is_mean_by_own_to_the_power_and_never_above_1(own, fairness, factor):
    shares = shares_of([8, 4, 0, 0, 2, 2])  # 16 of the four that have sent anything
    assert shares == Shares(4, 16)
    assert shares.factor(own, fairness) == factor


def test_newcomers_and_those_below_the_mean_count_fully():
    assert shares_of([]).factor(0, 1.0) == 1.0
    assert shares_of([9, 1]).factor(0, 1.0) == 1.0
    assert shares_of([9, 1]).factor(1, 1.0) == 1.0


def test_who_sends_more_than_the_mean_moves_the_model_less():
    found = world(fairness=1.0)
    for _ in range(3):
        found.send(vector(1), device="a")
    found.send(vector(1), device="b")
    found.send(vector(3), device="a")  # the mean is 2, its own 3
    assert found.model.tolist() == [6.0] * SIZE
    found.send(vector(1), device="b")
    assert found.model.tolist() == [7.0] * SIZE


def test_an_erased_device_is_no_part_of_the_mean():
    found = world(fairness=1.0)
    for device in "aaab":
        found.send(ZEROS, device=device)
    found.append(DeviceErased(A))
    found.send(vector(1), device="b")
    assert found.model.tolist() == [1.0] * SIZE
    assert found.fold._shares == shares_of(r.folded for r in found.state.devices.values())


# -- refusals by the strategy --------------------------------------------------------------------


def test_what_the_strategy_does_not_believe_is_buried_answered_and_counted():
    found = world(robust=RobustOptions(max_norm=3.0))
    found.send(vector(2), device="a")
    assert outcome_of(found, "a") == Reason.OUTLIER
    assert found.state.tally.rejected == {"outlier": 1}
    assert [letter.reason for letter in found.fold.changes.dead] == ["outlier"]
    assert (found.state.devices[A].rejected, found.state.devices[A].folded) == (1, 0)
    assert found.state.model.version == 0
    found.send(vector(1), device="a")
    assert outcome_of(found, "a") == FOLDED


# -- merged contributions ------------------------------------------------------------------------


def test_a_merged_update_counts_as_often_as_the_devices_it_is_made_of():
    found = world(buffer_size=4, contributions_max=4)
    found.send(vector(3), contributions=2, weight=0.5)
    found.send(vector(1), contributions=2)
    assert found.model.tolist() == [2.0] * SIZE
    assert found.state.tally.folded == 2


@pytest.mark.parametrize(
    "given",
    [
        {"contributions": 5},
        {"weight": 0.0},
        {"weight": 1.5},
        {"weight": -0.5},
        {"weight": float("nan")},
        {"weight": float("inf")},
    ],
    ids=str,
)
def test_more_than_the_task_allows_and_weights_that_are_none_are_bad_numbers(given):
    found = world(contributions_max=4)
    found.send(vector(1), **given)
    assert outcome_of(found, "d") == Reason.BAD_NUMBER


# -- rounds --------------------------------------------------------------------------------------


def test_in_rounds_an_update_of_an_older_model_is_too_stale():
    found = world(name="fedavg", buffer_size=1)
    found.send(vector(1), device="a", num_examples=5)
    found.send(vector(1), device="b", base_version=0)
    assert outcome_of(found, "b") == Reason.TOO_STALE
    assert found.model.tolist() == [1.0] * SIZE


# -- rows ----------------------------------------------------------------------------------------


def test_a_row_that_waits_for_its_turn_has_its_deadline_counted_from_the_last_version():
    found = world(buffer_size=5, robust=ROWS, flush_after_s=1.0)
    for device in "aabcde":
        found.send(vector(5), device=device)
    assert (found.state.model.version, found.state.model.buffered) == (1, 1)
    assert found.fold.next_deadline_ms() == found.now_ms + 1000
    found.tick(1000)
    assert found.state.model.version == 2
    assert found.model.tolist() == [5.0] * SIZE
    assert found.fold.next_deadline_ms() is None


def test_another_specification_folds_rows_that_wait_too():
    found = world(buffer_size=5, robust=ROWS)
    for device in "abc":
        found.send(vector(5), device=device)
        found.send(vector(10), device=device)
    found.respecify(make_spec())
    assert found.model.tolist() == [9.0] * SIZE
    assert set(found.state.model.vectors) == {"params", "total"}
    assert found.state.model.rows == ()


def test_of_an_erased_device_no_row_and_no_vector_is_left():
    found = world(buffer_size=5, robust=ROWS)
    store = Store()
    for device in "aab":
        found.send(vector(5), device=device)
    store.commit(found.fold)
    assert {"row:0", "row:1", "row:2"} <= store.vectors.keys()
    found.append(DeviceErased(A))
    store.commit(found.fold)
    assert {name for name in store.vectors if name.startswith("row:")} == {"row:2"}
    assert [row.device for row in found.state.model.rows] == [B]
    assert found.state.model.buffered == 1
    assert image(store.load().state) == image(found.state)


# -- caches --------------------------------------------------------------------------------------


def test_of_an_erased_device_no_cache_is_left_and_none_is_in_the_sums():
    found = world(name="ca2fl", buffer_size=2)
    store = Store()
    found.send(vector(50.8), device="a")  # limits.max_abs is 100
    found.send(vector(25.4), device="b")
    store.commit(found.fold)
    assert {"cache:a", "cache:b"} <= store.vectors.keys()
    found.append(DeviceErased(A))
    store.commit(found.fold)
    assert "cache:a" not in store.vectors
    vectors = found.state.model.vectors
    assert vectors["caches"] == pytest.approx(vector(25.4), rel=1e-6)
    assert vectors["caches_now"] == pytest.approx(vector(25.4), rel=1e-6)
    found.append(DeviceErased(B))
    assert not vectors["caches"].any()
    assert found.state.model.scalars == {"cached": 0.0}


def test_caches_outlive_a_change_of_the_rate_and_no_other_strategy():
    found = world(name="ca2fl", buffer_size=2)
    found.send(vector(1), device="a")
    found.send(vector(1), device="b")
    store = Store()
    store.commit(found.fold)
    found.respecify(make_spec(name="ca2fl", buffer_size=2, server_lr=0.5))
    assert set(found.state.model.packed) == {"cache:a", "cache:b"}
    assert found.state.model.scalars == {"cached": 2.0}
    found.respecify(make_spec())
    store.commit(found.fold)
    assert not found.state.model.packed
    assert not [name for name in store.vectors if name.startswith("cache")]


# -- the server's own step -----------------------------------------------------------------------


def test_the_guide_outlives_updates_specifications_and_a_way_back():
    robust = RobustOptions(guard="aflguard")
    found = world(robust=robust)
    found.append(Guided(0, vector(1).tobytes()))
    found.send(vector(1))
    found.respecify(make_spec(buffer_size=2, momentum=0.5, robust=robust))
    found.append(ModelSet(ZEROS.tobytes(), 0))
    assert found.state.model.vectors[GUIDE].tolist() == [1.0] * SIZE
    found.send(vector(9))
    assert outcome_of(found, "d") == Reason.OUTLIER
