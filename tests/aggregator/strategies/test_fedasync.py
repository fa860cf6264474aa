"""FedAsync: its delta form is the paper's line, and none of the deviations found in the wild."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator

from aggregator.staleness import constant, hinge, polynomial
from aggregator.strategies import Advanced, Contribution, Unchanged, fedasync, strategy_for
from schemas.delta import BLOCK, Dense, Sparse, to_dense
from schemas.strategy import StalenessOptions, StrategyOptions

F32 = np.float32
WEIGHTS = {"constant": constant(), "polynomial": polynomial(0.5), "hinge": hinge(2.0, 1.0)}


def dense(*values):
    return Dense(np.array(values, dtype=F32))


class Server:
    """Publishes every version, as a task with publish.every = 1 does."""

    def __init__(self, strategy, start, every=1):
        self.strategy, self.every = strategy, every
        self.state = strategy.init(start)
        self.views = {0: start.copy()}

    @property
    def x(self):
        return self.state.vectors["params"]

    def fold(self, base, delta, num_examples=1):
        staleness = self.state.version - base
        update = Contribution(base, staleness, num_examples, delta)
        self.state, outcome = self.strategy.fold(self.state, update, self.views)
        if self.state.version % self.every == 0:
            self.views[self.state.version] = self.x.copy()
        return outcome


@LEAN
@given(
    seed=st.integers(0, 2**32),
    alpha=st.floats(0.05, 1.0),
    kind=st.sampled_from(sorted(WEIGHTS)),
    sparse=st.booleans(),
)
def test_it_is_algorithm_1_when_every_version_is_published_stale_bases_too(
    seed, alpha, kind, sparse
):
    rng, size, weigh = generator(seed), 9, WEIGHTS[kind]
    start = rng.standard_normal(size).astype(F32)
    server = Server(fedasync(alpha=alpha, weigh=weigh, views=99), start)
    history = [start.astype(np.float64)]
    for _ in range(12):
        base = int(rng.integers(0, server.state.version + 1))
        if sparse:
            indices = np.sort(rng.choice(size, 3, replace=False)).astype(np.int64)
            delta = Sparse(indices, rng.standard_normal(3).astype(F32))
        else:
            delta = Dense(rng.standard_normal(size).astype(F32))
        a = alpha * weigh(server.state.version - base)
        x_new = history[base] + to_dense(delta, size)
        history.append((1 - a) * history[-1] + a * x_new)
        assert server.fold(base, delta).weight == pytest.approx(a, rel=1e-15)
    scale = max(1.0, *(float(np.abs(x).max()) for x in history))
    assert np.allclose(server.x, history[-1], rtol=0, atol=1e-6 * scale)


@LEAN
@given(seed=st.integers(0, 2**32), every=st.integers(1, 4))
def test_it_is_a_naive_float32_loop_to_the_bit_however_seldom_is_published(seed, every):
    rng, alpha, weigh = generator(seed), 0.6, polynomial(0.5)
    start = rng.standard_normal(5).astype(F32)
    server = Server(fedasync(alpha=alpha, weigh=weigh, views=99), start, every)
    x = start.copy()
    for _ in range(12):
        base = int(rng.choice(list(server.views)))
        newest = max(server.views)
        delta = Dense(rng.standard_normal(5).astype(F32))
        a = F32(alpha * weigh(server.state.version - base))
        if base != newest:
            x = x + (server.views[base] - server.views[newest]) * a
        x = x + delta.values * a
        server.fold(base, delta)
    assert np.array_equal(server.x, x)


@LEAN
@given(seed=st.integers(0, 2**32))
def test_a_sparse_update_and_the_same_one_spelt_out_give_the_same_bits(seed):
    rng, size = generator(seed), 9
    start = rng.standard_normal(size).astype(F32)
    one, two = (
        Server(fedasync(alpha=0.6, weigh=polynomial(0.5), views=99), start) for _ in range(2)
    )
    for _ in range(8):
        base = int(rng.integers(0, one.state.version + 1))
        indices = np.sort(rng.choice(size, 3, replace=False)).astype(np.int64)
        delta = Sparse(indices, rng.standard_normal(3).astype(F32))
        one.fold(base, delta)
        two.fold(base, Dense(to_dense(delta, size)))
    assert np.array_equal(one.x, two.x)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK + 1, 2 * BLOCK + 3])
def test_blocks_meet_without_a_seam(size):
    rng = generator(size)
    start, one, two = (rng.standard_normal(size).astype(F32) for _ in range(3))
    server = Server(fedasync(alpha=0.5, weigh=constant(), views=9), start)
    server.fold(0, Dense(one))
    server.fold(0, Dense(two))
    first = start + one * F32(0.5)
    assert np.array_equal(server.x, first + (start - first) * F32(0.5) + two * F32(0.5))


def test_a_stale_update_pulls_back_towards_the_model_it_was_trained_from():
    server = Server(fedasync(alpha=0.5, weigh=constant(), views=9), np.zeros(1, F32))
    server.fold(0, dense(8.0))  # 4
    server.fold(0, dense(0.0))  # 0.5 * 4 + 0.5 * 0
    assert server.x.tolist() == [2.0]  # with the drift the other way round it were 6


def test_a_fresh_update_does_not_replace_the_model():
    """Flotilla: a = (1 + s)^-alpha, without the mixing rate: 1 for a fresh update."""
    server = Server(fedasync(alpha=0.6, weigh=polynomial(0.5), views=9), np.zeros(1, F32))
    outcome = server.fold(0, dense(10.0))
    assert outcome.weight == 0.6
    assert server.x.tolist() == [6.0]


def test_a_fresh_update_weighs_exactly_alpha():
    """NVFlare: staleness was taken after the version was raised."""
    for weigh in WEIGHTS.values():
        server = Server(fedasync(alpha=1.0, weigh=weigh, views=9), np.zeros(1, F32))
        for _ in range(3):
            assert server.fold(server.state.version, dense(1.0)).weight == 1.0
        assert server.x.tolist() == [3.0]


def test_zero_deltas_from_the_newest_base_leave_the_model_where_it_is():
    """FedML: full weights were added, so that the model grew with every update."""
    start = np.array([1.5, -2.5], F32)
    server = Server(fedasync(alpha=0.6, weigh=constant(), views=9), start)
    for version in range(20):
        server.fold(version, dense(0.0, 0.0))
    assert server.x.tobytes() == start.tobytes()


def test_num_examples_weighs_nothing_unless_asked():
    for unit, examples, weight in ((0, 7, 0.5), (0, 10**6, 0.5), (10, 5, 0.25), (10, 99, 0.5)):
        asked = StrategyOptions("fedasync", alpha=0.5, examples_unit=unit)
        server = Server(strategy_for(asked), np.zeros(1, F32))
        assert server.fold(0, dense(1.0), examples).weight == weight


def test_every_update_makes_a_version_and_names_the_model_as_changed():
    server = Server(fedasync(alpha=0.5, weigh=constant(), views=9), np.zeros(1, F32))
    for version in range(1, 4):
        outcome = server.fold(0, dense(1.0))
        assert isinstance(outcome, Advanced)
        assert outcome.changed == {"params"}
        assert (server.state.version, server.state.buffered) == (version, 0)


def test_there_is_never_anything_to_flush():
    strategy = fedasync(alpha=0.5, weigh=constant(), views=9)
    state = strategy.init(np.zeros(1, F32))
    assert strategy.flush(state) == (state, Unchanged())


def test_neither_the_views_nor_the_delta_are_written():
    start = np.ones(2, F32)
    server = Server(fedasync(alpha=0.5, weigh=constant(), views=9), start)
    delta = dense(1.0, 2.0)
    delta.values.flags.writeable = False
    server.fold(0, delta)
    for view in server.views.values():
        view.flags.writeable = False
    server.fold(0, delta)
    assert start.tolist() == [1.0, 1.0]


def test_a_task_gets_the_alpha_the_views_and_the_weight_it_asks_for():
    asked = StrategyOptions(
        "fedasync", alpha=0.8, views=5, staleness=StalenessOptions("hinge", a=3, b=0)
    )
    server = Server(strategy_for(asked), np.zeros(1, F32))
    server.fold(0, dense(1.0))
    assert server.fold(0, dense(1.0)).weight == 0.8 * 0.25
    assert server.strategy.views == 5
