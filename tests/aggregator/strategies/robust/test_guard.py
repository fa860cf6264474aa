"""The guard: who passes, who is refused, and what is folded of those who pass."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator

from aggregator.strategies.robust import guarded
from aggregator.strategies.strategy import (
    Advanced,
    Contribution,
    Refused,
    State,
    Strategy,
    Unchanged,
)
from schemas.delta import Delta, Dense, Sparse, add_scaled, to_dense
from schemas.outcomes import Reason
from schemas.strategy import RobustOptions


def _add(state, contribution, _views):
    add_scaled(state.vectors["params"], contribution.delta, 1.0)
    return State(state.version + 1, state.vectors), Advanced(1.0, frozenset({"params"}))


PLAIN = Strategy(
    lambda params: State(0, {"params": params}), _add, lambda state: (state, Unchanged())
)
"""Adds every delta to the model: the plainest strategy there is."""

GUIDE = np.array([3, 4, 0], dtype=np.float32)  # 5 long


def dense(*values: float) -> Dense:
    return Dense(np.array(values, dtype=np.float32))


def sparse(indices: list[int], values: list[float]) -> Sparse:
    return Sparse(np.array(indices, dtype=np.int64), np.array(values, dtype=np.float32))


def folded(delta: Delta, options: RobustOptions, guide: np.ndarray | None = GUIDE):
    """What becomes of one update, and the model after it."""
    strategy = guarded(PLAIN, options)
    state = strategy.init(np.zeros(3, np.float32))
    if guide is not None:
        state = State(state.version, {**state.vectors, "guide": guide})
    after, outcome = strategy.fold(state, Contribution(0, 0, 1, delta), {})
    if isinstance(outcome, Refused):
        assert after is state
        assert outcome.reason is Reason.OUTLIER
        assert not state.vectors["params"].any()
    return outcome, after.vectors["params"].tolist()


def passes(delta: Delta, options: RobustOptions, guide: np.ndarray | None = GUIDE) -> bool:
    return isinstance(folded(delta, options, guide)[0], Advanced)


def test_without_a_bound_or_a_guard_the_strategy_is_left_as_it_is():
    assert guarded(PLAIN, RobustOptions()) is PLAIN


def test_a_delta_as_long_as_the_bound_passes_and_a_longer_one_does_not():
    options = RobustOptions(max_norm=5)
    assert folded(dense(3, 4, 0), options)[1] == [3, 4, 0]
    outcome, model = folded(dense(3, 4.001, 0), options)
    assert isinstance(outcome, Refused)
    assert outcome.detail == "5.0008 long, more than 5"
    assert model == [0, 0, 0]


def test_a_repeated_index_is_as_long_as_its_sum():
    options = RobustOptions(max_norm=5)
    assert not passes(sparse([1, 1], [3, 3]), options)  # 4.2 long if they were two
    assert folded(sparse([1, 1, 0], [9, -5, 3]), options)[1] == [3, 4, 0]


@pytest.mark.parametrize("guide", [None, np.zeros(3, np.float32)])
@pytest.mark.parametrize("guard", ["aflguard", "zeno++"])
def test_without_a_step_of_the_servers_own_everything_passes(guard, guide):
    found = folded(dense(-30, -40, 7), RobustOptions(guard=guard), guide)
    assert found[1] == [-30, -40, 7]


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_aflguard_takes_what_is_within_a_share_of_the_servers_own_length(form):
    options = RobustOptions(guard="aflguard", guard_radius=1.5)  # 7.5 away at most

    def shaped(*values: float) -> Delta:
        return dense(*values) if form == "dense" else sparse([2, 0, 1], [values[2], *values[:2]])

    assert passes(shaped(3, 4, 7.5), options)
    assert not passes(shaped(3, 4, 7.6), options)
    assert not passes(shaped(-3, -4, 0), options)
    assert passes(shaped(0, 0, 0), options)


def test_zeno_folds_what_goes_its_way_at_its_own_length():
    options = RobustOptions(guard="zeno++")
    assert folded(dense(0, 100, 0), options)[1] == [0, 5, 0]
    assert folded(sparse([1, 1], [40, 60]), options)[1] == [0, 5, 0]
    assert folded(dense(0, 0, 0), options)[1] == [0, 0, 0]


def test_zeno_refuses_what_goes_back_further_than_its_slack():
    options = RobustOptions(guard="zeno++", zeno_rho=0.1, zeno_slack=0.3)  # cosine -0.2 at least
    side = np.sqrt(1 - 0.19**2)
    assert passes(dense(*(-0.19 * GUIDE / 5 + side * np.array([0, 0, 1]))), options)
    side = np.sqrt(1 - 0.21**2)
    assert not passes(dense(*(-0.21 * GUIDE / 5 + side * np.array([0, 0, 1]))), options)


def test_zeno_asks_the_same_of_a_fleet_with_a_smaller_rate():
    options = RobustOptions(guard="zeno++", zeno_rho=0.0, zeno_slack=0.1)
    for rate in (1e-8, 1e8):
        assert not passes(dense(-rate, 0, 0), options, GUIDE * np.float32(rate))
        assert passes(dense(rate, 0, 0), options, GUIDE * np.float32(rate))


@LEAN
@given(
    seed=st.integers(0, 99),
    indices=st.lists(st.integers(0, 2), max_size=6),
    guard=st.sampled_from(["aflguard", "zeno++"]),
)
def test_a_sparse_delta_fares_like_the_same_spelt_out(seed, indices, guard):
    values = generator(seed).standard_normal(len(indices)) * 6
    thin = sparse(indices, values.tolist())
    options = RobustOptions(guard=guard, max_norm=9)
    one, other = folded(thin, options), folded(Dense(to_dense(thin, 3)), options)
    assert type(one[0]) is type(other[0])
    assert np.allclose(one[1], other[1], rtol=1e-6)
