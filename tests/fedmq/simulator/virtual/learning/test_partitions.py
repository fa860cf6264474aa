"""Who gets which examples."""

import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from fedmq.simulator.virtual.learning.data_options import DataOptions
from fedmq.simulator.virtual.learning.partitions import MIN_EXAMPLES, Skew, hands_of
from fedmq.simulator.virtual.learning.share import Share, drifted, one_hot
from schemas.errors import ConfigError

LABELS = np.arange(1000) % 10
SKEWS: tuple[Skew, ...] = ("iid", "dirichlet", "shards", "quantity")


def classes(rows: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> int:
    return len(set(LABELS[rows]))


@pytest.mark.parametrize("skew", SKEWS)
def test_a_small_fleet_is_dealt_every_example_once(skew: Skew) -> None:
    hands = hands_of(LABELS, skew, DataOptions(), 20, 3)
    dealt = np.concatenate([hands(device) for device in range(20)])
    assert sorted(dealt) == list(range(1000))
    assert min(len(hands(device)) for device in range(20)) >= MIN_EXAMPLES


@LEAN
@given(
    st.sampled_from(SKEWS),
    st.floats(1e-3, 1e3),
    st.integers(1, 200),
    st.sampled_from((0, 8, 30)),
    st.integers(0, 99),
)
def test_nobody_is_left_with_fewer_than_eight(
    skew: Skew, alpha: float, devices: int, examples: int, seed: int
) -> None:
    options = DataOptions(alpha=alpha, examples=examples)
    hands = hands_of(LABELS, skew, options, devices, seed)
    for device in {0, devices // 2, devices - 1}:
        rows = hands(device)
        assert len(rows) >= MIN_EXAMPLES
        assert 0 <= rows.min() <= rows.max() < len(LABELS)


def test_nobody_has_what_was_dealt_to_a_fleet_that_it_is_not_of() -> None:
    with pytest.raises(IndexError):
        hands_of(LABELS, "iid", DataOptions(), 20, 3)(20)


def test_who_only_sleeps_costs_nothing_and_who_is_asked_leaves_nothing_behind() -> None:
    hands = hands_of(LABELS, "dirichlet", DataOptions(), 10_000_000, 3)
    hands(0)
    tracemalloc.start()
    for device in range(500):
        hands(device)
    left, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < 10_000
    assert highest < 50_000


@pytest.mark.parametrize("skew", SKEWS)
def test_a_device_of_a_huge_fleet_draws_the_same_whenever_it_is_asked(skew: Skew) -> None:
    hands = hands_of(LABELS, skew, DataOptions(), 10_000_000, 3)
    again = hands_of(LABELS, skew, DataOptions(), 10_000_000, 3)
    other = hands_of(LABELS, skew, DataOptions(), 10_000_000, 4)
    drawn = hands(9_999_999)
    hands(5)
    assert (hands(9_999_999) == drawn).all()
    assert (again(9_999_999) == drawn).all()
    assert drawn.tolist() != hands(9_999_998).tolist()
    assert drawn.tolist() != other(9_999_999).tolist()
    assert len(drawn) >= MIN_EXAMPLES


def test_each_skew_is_skewed_in_its_own_way() -> None:
    few = msgspec.structs.replace(DataOptions(), alpha=0.1, examples=60)
    drawn = {
        skew: [hands_of(LABELS, skew, few, 5000, 1)(device) for device in range(200)]
        for skew in SKEWS
    }
    known = {skew: np.mean([classes(rows) for rows in hands]) for skew, hands in drawn.items()}
    sizes = {skew: np.std([len(rows) for rows in hands]) for skew, hands in drawn.items()}
    assert {classes(rows) for rows in drawn["shards"]} == {2}
    assert known["dirichlet"] < 5
    assert known["iid"] > 9
    assert sizes["iid"] == sizes["dirichlet"] == sizes["shards"] == 0
    assert sizes["quantity"] > 30


def test_more_shards_than_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.shards_per_device: must not exceed the 10"):
        hands_of(LABELS, "shards", DataOptions(shards_per_device=11), 5000, 1)


def test_fewer_than_eight_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.examples: must be 0, or at least 8"):
        hands_of(LABELS, "iid", DataOptions(examples=7), 5, 1)


def test_shards_that_are_dealt_hold_few_classes() -> None:
    hands = hands_of(LABELS, "shards", DataOptions(shards_per_device=2), 50, 1)
    assert {classes(hands(device)) for device in range(50)} <= {1, 2}


def drifting(at_s: float) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    share: Share = one_hot(np.zeros((1000, 1), np.float32), LABELS, 10)
    options = DataOptions(drift_classes=3, drift_s=100.0)
    targets = drifted(share, np.arange(1000), options, at_s).targets
    turned: np.ndarray[tuple[int], np.dtype[np.int64]] = (targets.argmax(axis=1) - LABELS) % 10
    return turned


def test_labels_rotate_smoothly() -> None:
    assert set(drifting(0.0)) == {0}
    assert set(drifting(100.0)) == {3}
    assert set(drifting(400.0)) == {2}
    quarter = drifting(25.0)
    assert set(quarter) == {0, 3}
    assert 0.24 < np.mean(quarter == 3) < 0.26
    assert (drifting(50.0)[quarter == 3] == 3).all()  # who has turned does not turn back
