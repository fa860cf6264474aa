"""What the table of test_conformance cannot say in one number: caches, statistics, rows, names."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator

from aggregator.strategies import Buffered, Contribution, strategy_for
from aggregator.strategies.adam import rate_of
from aggregator.strategies.ca2fl import packed, unpacked
from schemas.delta import BLOCK, Dense, Sparse
from schemas.names import DeviceId
from schemas.strategy import AdamOptions, RobustOptions, StrategyOptions

F32 = np.float32
NAMES = ("fedbuff", "fadas", "ca2fl", "fedavg", "fedadam")


def contribution(delta, device="a", **given):
    return Contribution(0, given.pop("staleness", 0), 1, delta, device=DeviceId(device), **given)


def dense(*values):
    return Dense(np.array(values, F32))


# -- caches --------------------------------------------------------------------------------------


@LEAN
@given(seed=st.integers(0, 2**32), exponent=st.integers(-40, 37))
def test_a_cache_is_a_quarter_as_large_and_off_by_half_a_level_at_most(seed, exponent):
    delta = (generator(seed).standard_normal(40) * 10.0**exponent).astype(F32)
    data = packed(delta)
    assert len(data) == 4 + delta.size
    level = max(float(np.abs(delta).max()) / 127, 1e-44)
    apart = np.abs(unpacked(data).astype(np.float64) - delta.astype(np.float64))
    assert apart.max() <= 0.51 * level


def test_a_cache_of_nothing_is_nothing():
    assert unpacked(packed(np.zeros(3, F32))).tolist() == [0, 0, 0]


def test_the_sum_of_the_caches_is_that_of_the_caches_however_often_they_are_replaced():
    strategy, rng = strategy_for(StrategyOptions("ca2fl", 3)), generator(1)
    state = strategy.init(np.zeros(16, F32))
    for turn in range(60):
        delta = Dense(rng.standard_normal(16).astype(F32))
        state, _ = strategy.fold(state, contribution(delta, "abcd"[turn % 4]), {})
    exact = sum(unpacked(data).astype(np.float64) for data in state.packed.values())
    assert state.vectors["caches_now"] == pytest.approx(exact, abs=1e-5)
    assert state.scalars["cached"] == 4


def test_a_silenced_device_leaves_no_cache():
    strategy = strategy_for(StrategyOptions("ca2fl", 1))
    state = strategy.init(np.zeros(1, F32))
    state, _ = strategy.fold(state, contribution(dense(9), scale=0.0), {})
    assert not state.packed
    assert state.vectors["params"].tolist() == [0]


# -- statistics of the model, blocks, silence ----------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_averaged_whatever_the_server_s_step(name):
    asked = StrategyOptions(
        name, 2, server_lr=3.0, momentum=0.5 if name in {"fedbuff", "fedavg"} else 0.0
    )
    strategy = strategy_for(asked, (slice(1, 2),))
    state = strategy.init(np.array([0, 10], F32))
    for device, value in (("a", 4), ("b", 8)):
        state, _ = strategy.fold(state, contribution(dense(1, value), device), {})
    assert state.vectors["params"][1] == 16
    assert state.vectors["params"][0] != 1


@pytest.mark.parametrize("name", [*NAMES, "fedfa"])
def test_blocks_meet_without_a_seam(name):
    """Whatever happens to one coordinate happens to all that are like it."""
    strategy = strategy_for(StrategyOptions(name, 2))
    size = BLOCK + 3
    state = strategy.init(np.zeros(size, F32))
    for device, value in (("a", 1.5), ("b", -4.0), ("a", 3.0), ("b", 0.25)):
        views = {0: np.zeros(size, F32)}
        ones = Dense(np.full(size, value, F32))
        state, _ = strategy.fold(state, contribution(ones, device), views)
    params = state.vectors["params"]
    assert params[0]
    assert (params == params[0]).all()


@pytest.mark.parametrize("name", [*NAMES, "fedasync", "fedfa"])
def test_the_silenced_keep_their_place_and_change_nothing(name):
    strategy = strategy_for(StrategyOptions(name, 1))
    start = np.array([1.5, -2.0], F32)
    state = strategy.init(start)
    state, outcome = strategy.fold(state, contribution(dense(9, 9), scale=0.0), {0: start})
    assert state.version == 1
    assert outcome.weight == 0
    assert state.vectors["params"].tolist() == start.tolist()


# -- FADAS's rate --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lr", "delay", "rate"), [(0.5, 0, 0.5), (0.5, 2, 0.5), (0.5, 4, 0.25), (0.001, 64, 0.001)]
)
def test_the_rate_is_the_smaller_of_eta_and_1_by_the_delay_beyond_tau_c(lr, delay, rate):
    assert rate_of(AdamOptions(lr=lr, tau_c=3), delay) == rate


def test_a_delay_up_to_tau_c_does_not_lower_the_rate():
    assert rate_of(AdamOptions(lr=0.9, tau_c=3), 3) == 0.9


def test_fadas_looks_at_the_stalest_of_this_buffer_alone():
    strategy = strategy_for(StrategyOptions("fadas", 2))
    state = strategy.init(np.zeros(1, F32))
    for staleness in (7, 3):
        state, _ = strategy.fold(state, contribution(dense(1), staleness=staleness), {})
        assert state.scalars["delay"] == (7 if state.buffered else 0)


# -- rows ----------------------------------------------------------------------------------------


def rows(**given):
    return strategy_for(
        StrategyOptions(buffer_size=5, **given, robust=RobustOptions(rule="median"))
    )


def test_a_buffer_is_full_when_k_devices_have_a_row_in_it():
    strategy = rows()
    state = strategy.init(np.zeros(2, F32))
    for device in "aaabbcd":
        state, outcome = strategy.fold(state, contribution(dense(1, 1), device), {})
        assert isinstance(outcome, Buffered)
    assert state.buffered == 4
    assert [(row.device, row.weight) for row in state.rows] == [
        ("a", 1),
        ("a", 1),
        ("b", 1),
        ("b", 1),
        ("c", 1),
        ("d", 1),
    ]
    assert [row.count for row in state.rows] == [1, 2, 1, 1, 1, 1]
    state, _ = strategy.fold(state, contribution(dense(1, 1), "e"), {})
    assert (state.version, state.buffered) == (1, 2)
    assert set(state.vectors) == {"params", *(row.name for row in state.rows)}


def test_a_row_is_its_weight_times_a_delta_spelt_out():
    strategy = rows()
    state = strategy.init(np.zeros(3, F32))
    sparse = Sparse(np.array([2, 2]), np.array([1, 3], F32))
    state, outcome = strategy.fold(state, contribution(sparse, staleness=3), {})
    assert state.vectors[state.rows[0].name].tolist() == [0, 0, 2]
    assert outcome.changed == {state.rows[0].name}


def test_where_sums_are_divided_by_weights_so_are_rows():
    """Five rows that weigh 1/2: the median of 4 / 2 is 2, by 5 / (5 / 2) it is 4."""
    strategy = rows(divide_by="weights")
    state = strategy.init(np.zeros(1, F32))
    for device in "abcde":
        state, _ = strategy.fold(state, contribution(dense(4), device, staleness=3), {})
    assert state.vectors["params"].tolist() == [4]


def test_the_last_estimate_is_where_centred_clipping_begins():
    robust = RobustOptions(rule="centered-clipping", clip_norm=1.0, rounds=1)
    strategy = strategy_for(StrategyOptions(buffer_size=5, robust=robust))
    state = strategy.init(np.zeros(1, F32))
    seen = []
    for _ in range(2):
        for device in "abcde":
            state, _ = strategy.fold(state, contribution(dense(9), device), {})
        seen.append(state.vectors["centre"].tolist())
    assert seen == [[1], [2]]
    assert state.vectors["params"].tolist() == [3]
