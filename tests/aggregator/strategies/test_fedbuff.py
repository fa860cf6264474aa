"""FedBuff against the paper in float64, and against a naive float32 loop bit for bit."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator

from aggregator.staleness import constant, hinge, polynomial
from aggregator.strategies import (
    Advanced,
    Buffered,
    Contribution,
    Unchanged,
    fedbuff,
    strategy_for,
)
from schemas.delta import BLOCK, Dense, Sparse, to_dense
from schemas.strategy import StalenessOptions, StrategyOptions

F32 = np.float32
WEIGHTS = {"constant": constant(), "polynomial": polynomial(0.5), "hinge": hinge(10.0, 4.0)}


def contribution(delta, staleness=0, num_examples=1):
    return Contribution(0, staleness, num_examples, delta)


def dense(*values):
    return Dense(np.array(values, dtype=F32))


@dataclass
class Naive:
    """Algorithm 1 as one would write it down, in `kind` arithmetic, element by element."""

    x: np.ndarray
    k: int
    rate: float
    beta: float
    kind: type
    total: np.ndarray = field(init=False)
    memory: np.ndarray = field(init=False)
    count: int = 0

    def __post_init__(self):
        self.x = self.x.astype(self.kind)
        self.total = np.zeros_like(self.x)
        self.memory = np.zeros_like(self.x)

    def fold(self, values, weight):
        self.total = self.total + self.kind(weight) * values.astype(self.kind)
        self.count += 1
        if self.count == self.k:
            self.advance()

    def advance(self):
        mean = self.total / self.kind(self.k)
        self.memory = self.kind(self.beta) * self.memory + mean
        step = self.memory if self.beta else mean
        self.x = self.x + self.kind(self.rate) * step
        self.total = np.zeros_like(self.x)
        self.count = 0


def random_delta(rng, size):
    if rng.random() < 0.5:
        return Dense(rng.standard_normal(size).astype(F32))
    indices = np.sort(rng.choice(size, size=max(1, size // 3), replace=False)).astype(np.int64)
    return Sparse(indices, rng.standard_normal(indices.size).astype(F32))


@LEAN
@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 7, 64]),
    k=st.integers(1, 7),
    kind=st.sampled_from(sorted(WEIGHTS)),
    rate=st.sampled_from([1.0, 0.3, 2.5]),
    beta=st.sampled_from([0.0, 0.9, 0.3]),
)
def test_it_is_algorithm_1_in_float64_to_1e6_and_in_float32_to_the_bit(
    *, seed, size, k, kind, rate, beta
):
    rng, weigh = generator(seed), WEIGHTS[kind]
    start = rng.standard_normal(size).astype(F32)
    strategy = fedbuff(buffer_size=k, weigh=weigh, server_lr=rate, momentum=beta)
    state = strategy.init(start)
    exact = Naive(start, k, rate, beta, np.float64)
    naive = Naive(start, k, rate, beta, np.float32)
    for _ in range(3 * k + 1):
        delta, staleness = random_delta(rng, size), int(rng.integers(0, 12))
        state, _ = strategy.fold(state, contribution(delta, staleness), {})
        for reference in (exact, naive):
            reference.fold(to_dense(delta, size), weigh(staleness))
    assert state.version == (3 * k + 1) // k
    assert state.buffered == naive.count
    params = state.vectors["params"]
    assert params.dtype == F32
    assert np.array_equal(params, naive.x)
    assert np.array_equal(state.vectors["total"], naive.total)
    scale = max(1.0, float(np.abs(exact.x).max()))
    assert np.allclose(params, exact.x, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3])
def test_blocks_meet_without_a_seam(size):
    rng = generator(size)
    start = rng.standard_normal(size).astype(F32)
    strategy = fedbuff(buffer_size=2, weigh=polynomial(0.5), server_lr=0.7, momentum=0.9)
    state, naive = strategy.init(start), Naive(start, 2, 0.7, 0.9, np.float32)
    for staleness in (0, 3, 1, 0):
        delta = Dense(rng.standard_normal(size).astype(F32))
        state, _ = strategy.fold(state, contribution(delta, staleness), {})
        naive.fold(delta.values, polynomial(0.5)(staleness))
    assert np.array_equal(state.vectors["params"], naive.x)


def test_the_buffer_is_divided_by_k_and_never_by_the_sum_of_the_weights():
    strategy = fedbuff(buffer_size=2, weigh=polynomial(0.5))
    state = strategy.init(np.zeros(1, F32))
    for _ in range(2):
        state, outcome = strategy.fold(state, contribution(dense(8.0), 3), {})
        assert outcome.weight == 0.5
    assert state.vectors["params"].tolist() == [4.0]  # by the sum of the weights it were 8


def test_k_equal_fresh_deltas_move_the_model_by_exactly_that_delta():
    """SDFLMQ: the sum began with the aggregator's own model and was divided by n: (n + 1) / n."""
    strategy = fedbuff(buffer_size=4, weigh=polynomial(0.5))
    state = strategy.init(np.array([100.0], F32))
    for _ in range(4):
        state, _ = strategy.fold(state, contribution(dense(2.0)), {})
    assert state.vectors["params"].tolist() == [102.0]


@pytest.mark.parametrize("kind", sorted(WEIGHTS))
def test_a_fresh_update_weighs_exactly_1_even_when_it_is_the_one_that_makes_the_version(kind):
    """NVFlare: staleness was taken after the version was raised, and fresh weighed 0.5."""
    strategy = fedbuff(buffer_size=1, weigh=WEIGHTS[kind])
    state = strategy.init(np.array([1.0], F32))
    state, outcome = strategy.fold(state, contribution(dense(0.25)), {})
    assert outcome.weight == 1.0
    assert state.vectors["params"].tolist() == [1.25]


def test_a_stale_delta_is_added_as_it_came_whatever_the_model_has_become():
    """APPFL: w_local - w_current instead of w_local - w_base, which is another algorithm."""
    strategy = fedbuff(buffer_size=1, weigh=constant())
    state = strategy.init(np.array([0.0], F32))
    state, _ = strategy.fold(state, contribution(dense(10.0)), {})
    state, _ = strategy.fold(state, contribution(dense(1.0), staleness=1), {})
    assert state.vectors["params"].tolist() == [11.0]  # against the current one: 1


def test_zero_deltas_leave_the_model_where_it_is_for_ever():
    """FedML: full weights were added, so that the model grew with every update."""
    strategy = fedbuff(buffer_size=1, weigh=polynomial(0.5), momentum=0.9)
    start = np.array([1.5, -2.5], F32)
    state = strategy.init(start)
    for staleness in range(20):
        state, _ = strategy.fold(state, contribution(dense(0.0, 0.0), staleness), {})
    assert state.vectors["params"].tobytes() == start.tobytes()
    assert state.version == 20


def test_num_examples_weighs_nothing_unless_asked():
    strategy = strategy_for(StrategyOptions(buffer_size=1))
    state = strategy.init(np.zeros(1, F32))
    for examples in (1, 1_000_000):
        state, outcome = strategy.fold(state, contribution(dense(1.0), 0, examples), {})
        assert outcome.weight == 1.0


@pytest.mark.parametrize(
    ("examples", "weight"), [(1, 0.01), (50, 0.5), (100, 1.0), (101, 1.0), (2**32 - 1, 1.0)]
)
def test_num_examples_weighs_its_share_of_the_unit_and_never_more_than_1(examples, weight):
    asked = StrategyOptions(buffer_size=1, examples_unit=100)
    strategy = strategy_for(asked)
    _, outcome = strategy.fold(
        strategy.init(np.zeros(1, F32)), contribution(dense(1.0), 0, examples), {}
    )
    assert outcome.weight == weight


def test_the_share_of_examples_multiplies_the_staleness_weight():
    asked = StrategyOptions(buffer_size=1, examples_unit=10)
    strategy = strategy_for(asked)
    state, outcome = strategy.fold(
        strategy.init(np.zeros(1, F32)), contribution(dense(8.0), 3, 5), {}
    )
    assert outcome.weight == 0.25
    assert state.vectors["params"].tolist() == [2.0]


def test_momentum_remembers_and_carries_on():
    strategy = fedbuff(buffer_size=1, weigh=constant(), server_lr=2.0, momentum=0.5)
    state = strategy.init(np.zeros(1, F32))
    seen = []
    for value in (8.0, 0.0, 0.0):
        state, _ = strategy.fold(state, contribution(dense(value)), {})
        seen.append(float(state.vectors["params"][0]))
    assert seen == [16.0, 24.0, 28.0]
    assert state.vectors["momentum"].tolist() == [2.0]


def test_without_momentum_no_vector_is_kept_for_it():
    strategy = fedbuff(buffer_size=1, weigh=constant())
    assert set(strategy.init(np.zeros(1, F32)).vectors) == {"params", "total"}


def test_a_flush_folds_a_partial_buffer_and_still_divides_by_k():
    strategy = fedbuff(buffer_size=4, weigh=constant())
    state = strategy.init(np.zeros(1, F32))
    state, _ = strategy.fold(state, contribution(dense(8.0)), {})
    state, outcome = strategy.flush(state)
    assert isinstance(outcome, Advanced)
    assert (state.version, state.buffered) == (1, 0)
    assert state.vectors["params"].tolist() == [2.0]
    assert state.vectors["total"].tolist() == [0.0]


def test_there_is_nothing_to_flush_in_an_empty_buffer():
    strategy = fedbuff(buffer_size=4, weigh=constant(), momentum=0.9)
    state = strategy.init(np.zeros(1, F32))
    flushed, outcome = strategy.flush(state)
    assert isinstance(outcome, Unchanged)
    assert flushed is state


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_every_vector_that_is_not_as_before_is_named(momentum):
    strategy = fedbuff(buffer_size=2, weigh=constant(), momentum=momentum)
    state = strategy.init(np.ones(3, F32))
    for _ in range(5):
        before = {name: v.tobytes() for name, v in state.vectors.items()}
        state, outcome = strategy.fold(state, contribution(dense(1, 2, 3)), {})
        differs = {name for name, v in state.vectors.items() if v.tobytes() != before[name]}
        assert differs <= outcome.changed <= state.vectors.keys()
        assert isinstance(outcome, Buffered if state.buffered else Advanced)


def test_the_initial_model_of_the_caller_is_never_written():
    start = np.zeros(2, F32)
    strategy = fedbuff(buffer_size=1, weigh=constant())
    strategy.fold(strategy.init(start), contribution(dense(1.0, 1.0)), {})
    assert start.tolist() == [0.0, 0.0]


def test_the_delta_of_the_caller_is_never_written():
    delta = dense(1.0, 2.0)
    delta.values.flags.writeable = False
    strategy = fedbuff(buffer_size=1, weigh=polynomial(0.5), momentum=0.9)
    state = strategy.init(np.zeros(2, F32))
    state, _ = strategy.fold(state, contribution(delta, 3), {})
    assert delta.values.tolist() == [1.0, 2.0]


def test_a_task_gets_the_rate_the_momentum_the_buffer_and_the_weight_it_asks_for():
    asked = StrategyOptions(
        buffer_size=2, server_lr=4.0, momentum=0.5, staleness=StalenessOptions("hinge", a=1, b=0)
    )
    strategy = strategy_for(asked)
    state = strategy.init(np.zeros(1, F32))
    for _ in range(4):
        state, _ = strategy.fold(state, contribution(dense(1.0), 1), {})
    # the mean is 0.5, then m = 0.5 and 0.75; x = 4 * (0.5 + 0.75)
    assert state.vectors["params"].tolist() == [5.0]
    assert strategy.views == 0
