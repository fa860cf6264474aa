"""Every strategy against sums done by hand; and others' mistakes, which the same table refuses.

A row of the table is a task, and a sequence of updates with the model that must stand after each.
All numbers are exact in float32 unless a row says otherwise.
"""

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
import pytest

from aggregator.strategies import (
    Advanced,
    Buffered,
    Contribution,
    State,
    Strategy,
    Unchanged,
    strategy_for,
)
from schemas.delta import Dense
from schemas.names import DeviceId
from schemas.strategy import AdamOptions, RobustOptions, StalenessOptions, StrategyOptions

F32 = np.float32


@dataclass(frozen=True)
class Up:
    """An update of one number, trained from version `base`, and the model after it."""

    delta: float
    base: int
    after: float
    examples: int = 1
    device: str = "a"
    merged: int = 1
    carried: float = 1.0


@dataclass(frozen=True)
class Flush:
    """The deadline has passed."""

    after: float


@dataclass(frozen=True)
class Row:
    """A task, the model at the beginning, and what happens."""

    title: str
    options: StrategyOptions
    start: float
    steps: tuple[Up | Flush, ...]
    plain: bool = False  # of the algorithms that `Naive` below writes down


def task(name="fedbuff", buffer_size=1, **given):
    return StrategyOptions(name, buffer_size, **given)


LINEAR = StalenessOptions("polynomial", a=1.0)
HALF = AdamOptions(lr=0.5, beta1=0.5, beta2=0.75, eps=1.0, tau_c=1)

TABLE = (
    Row(
        "fedbuff: K fresh ones move the model by their mean, from wherever it is",
        task(buffer_size=2),
        100.0,
        (Up(6, 0, 100), Up(2, 0, 104), Up(0, 1, 104), Up(0, 1, 104)),
        plain=True,
    ),
    Row(
        "fedbuff: staleness 3 weighs 1/2, and the sum is divided by K: (4/2 + 8) / 2",
        task(buffer_size=2),
        0.0,
        (
            *(Up(2, base, 2 * (base + turn)) for base in range(3) for turn in range(2)),
            Up(4, 0, 6),
            Up(8, 3, 11),
        ),
        plain=True,
    ),
    Row(
        "fedbuff: a stale delta is added as it came, whatever the model has become",
        task(staleness=StalenessOptions("constant")),
        0.0,
        (Up(10, 0, 10), Up(1, 0, 11), Up(1, 0, 12)),
        plain=True,
    ),
    Row(
        "fedbuff: m = 8, 4, 2 and eta = 2",
        task(server_lr=2.0, momentum=0.5),
        0.0,
        (Up(8, 0, 16), Up(0, 1, 24), Up(0, 2, 28)),
    ),
    Row(
        "fedbuff: a part of a buffer is divided by K, too",
        task(buffer_size=4),
        0.0,
        (Up(8, 0, 0), Flush(2), Flush(2)),
    ),
    Row(
        "fedbuff: a merged update adds c delta and counts as c; of 4 in a buffer of 3, a quarter",
        task(buffer_size=3, contributions_max=9),
        0.0,
        (Up(3, 0, 0, merged=2), Up(1, 0, 2, merged=2), Up(3, 1, 5, merged=3)),
    ),
    Row(
        "fedbuff by weights: (4/2 + 1) / (1/2 + 1)",
        task(buffer_size=2, divide_by="weights", staleness=LINEAR),
        0.0,
        (Up(0, 0, 0), Up(0, 0, 0), Up(4, 0, 0), Up(1, 1, 2), Up(5, 2, 2), Flush(7)),
    ),
    Row(
        "fedbuff by weights: two merged carry 1/2 each: (2 * 3 + 1) / (2 * 1/2 + 1)",
        task(buffer_size=3, divide_by="weights", contributions_max=2),
        0.0,
        (Up(3, 0, 0, merged=2, carried=0.5), Up(1, 0, 3.5)),
    ),
    Row(
        "fedbuff with a fixed clip: 8 is made 2 long, 1 is left as it is",
        task(robust=RobustOptions(clip="fixed", clip_norm=2.0)),
        0.0,
        (Up(-8, 0, -2), Up(1, 1, -1)),
    ),
    Row(
        "fedasync with a fixed clip: half of the way to 2",
        task("fedasync", alpha=0.5, robust=RobustOptions(clip="fixed", clip_norm=2.0)),
        0.0,
        (Up(8, 0, 1), Up(2, 1, 2)),
    ),
    Row(
        "fedasync: a half of the way to the device's model, not to the base and the delta",
        task("fedasync", alpha=0.5, staleness=StalenessOptions("constant")),
        0.0,
        (Up(8, 0, 4), Up(8, 0, 6), Up(2, 2, 7)),
        plain=True,
    ),
    Row(
        "fedasync: staleness 3 weighs 1/2: a = 1/4, x = 0 + (8 - 0) / 4",
        task("fedasync", alpha=0.5),
        0.0,
        (Up(0, 0, 0), Up(0, 1, 0), Up(0, 2, 0), Up(8, 0, 2)),
        plain=True,
    ),
    Row(
        "fadas: D = 2, m = 1, v = 1; then D = 0, m = 1/2, v = 3/4 and vhat = 1",
        task("fadas", 2, adam=HALF),
        0.0,
        (Up(3, 0, 0), Up(1, 0, 0.25), Up(0, 1, 0.25), Up(0, 1, 0.375)),
    ),
    Row(
        "fadas: staleness 4 is beyond tau_c = 1, eta becomes 1/4; 1 it is not, and eta stays",
        task("fadas", adam=HALF),
        0.0,
        (
            Up(2, 0, 0.25),
            Up(0, 0, 0.375),
            Up(0, 2, 0.4375),
            Up(0, 3, 0.46875),
            Up(0, 0, 0.4765625),
            Up(0, 5, 0.4765625 + 0.0078125),
        ),
    ),
    Row(
        "ca2fl: v = h + D / K with D = sum of delta - h_i and h of before this buffer",
        task("ca2fl", 2),
        0.0,
        (
            Up(127, 0, 0, device="a"),
            Up(254, 0, 190.5, device="b"),  # 381 / 2
            Up(127, 1, 190.5, device="a"),
            Up(0, 1, 254, device="b"),  # 381 / 2 - 254 / 2
            Up(254, 2, 254, device="a"),
            Up(254, 2, 381, device="a"),  # 127 / 2 + (254 - 127 + 254 - 254) / 2
        ),
    ),
    Row(
        "ca2fl: h is divided by the size of the fleet: 381 / 4 - 254 / 2, and eta = 2",
        task("ca2fl", 2, fleet_size=4, server_lr=2.0),
        0.0,
        (
            Up(127, 0, 0, device="a"),
            Up(254, 0, 381, device="b"),
            Up(127, 1, 381, device="a"),
            Up(0, 1, 317.5, device="b"),
        ),
    ),
    Row(
        "fedfa: the mean of the last two local models; it began with two copies of the first",
        task("fedfa", 2),
        4.0,
        (Up(4, 0, 6), Up(2, 1, 8), Up(-8, 0, 2)),
    ),
    Row(
        "fedavg: (1 * 8 + 3 * 0) / 4; a round of one is divided by its own examples",
        task("fedavg", 2),
        0.0,
        (Up(8, 0, 0, examples=1), Up(0, 0, 2, examples=3), Up(4, 1, 2, examples=7), Flush(6)),
    ),
    Row(
        "fedadam: v begins at eps^2 and nothing is corrected for bias: m = 1/2, v = 1",
        task("fedadam", 2, adam=HALF),
        0.0,
        (Up(4, 0, 0, examples=1), Up(0, 0, 0.125, examples=3)),
    ),
    Row(
        "fedadam: v is not its maximum: D = 3, then 0",
        task("fedadam", adam=AdamOptions(lr=0.5, beta1=0.5, beta2=0.0, eps=1.0)),
        0.0,
        (Up(3, 0, 0.1875), Up(0, 1, 0.5625)),  # 3/4 / 4, then 3/8
    ),
    Row(
        "fedbuff by the median: one of five lies; a device has one vote, its second one waits",
        task(buffer_size=5, robust=RobustOptions(rule="median")),
        0.0,
        (
            Up(1, 0, 0, device="a"),
            Up(10, 0, 0, device="a"),
            Up(2, 0, 0, device="b"),
            Up(3, 0, 0, device="c"),
            Up(4, 0, 0, device="d"),
            Up(1000, 0, 3, device="e"),
            Up(2, 1, 3, device="a"),
            Up(3, 1, 3, device="a"),  # 10 stands now, the mean of 2 and 3 waits
            Up(5, 1, 3, device="b"),
            Up(5, 1, 3, device="c"),
            Flush(6),  # three fifths of 5
            Up(1000, 1, 6, device="e"),
            Flush(7.5),  # 2.5, 1000, and 0 for the third that must be there: three fifths of 2.5
            Flush(7.5),
        ),
    ),
    Row(
        "fedavg by the median: examples that a device claims give it no more weight",
        task("fedavg", 5, robust=RobustOptions(rule="median")),
        0.0,
        (
            Up(1000, 0, 0, examples=1_000_000, device="a"),
            *(Up(1, 0, 0, device=name) for name in "bcd"),
            Up(1, 0, 1, device="e"),
            Up(4, 1, 1, device="a"),
            Flush(1),
            Up(4, 1, 1, device="b"),
            Up(6, 1, 1, device="c"),
            Up(8, 1, 1, device="d"),
            Flush(7),
        ),
    ),
)


def differs_at(row, make):
    """The first step of a row after which the model is another one; None: none is."""
    strategy = make(row.options)
    state = strategy.init(np.array([row.start], F32))
    views = {0: state.vectors["params"].copy()}
    for place, step in enumerate(row.steps):
        version = state.version
        match step:
            case Flush():
                state, outcome = strategy.flush(state)
            case Up():
                contribution = Contribution(
                    step.base,
                    version - step.base,
                    step.examples,
                    Dense(np.array([step.delta], F32)),
                    device=DeviceId(step.device),
                    contributions=step.merged,
                    carried=step.carried,
                )
                state, outcome = strategy.fold(state, contribution, views)
        assert state.version == version + isinstance(outcome, Advanced)
        views[state.version] = state.vectors["params"].copy()
        if state.vectors["params"].tolist() != [float(F32(step.after))]:
            return place
    return None


@pytest.mark.parametrize("row", TABLE, ids=[row.title for row in TABLE])
def test_the_model_is_the_one_computed_by_hand(row):
    assert differs_at(row, strategy_for) is None


def test_every_strategy_is_in_the_table():
    names = StrategyOptions.__annotations__["name"].__args__
    assert {row.options.name for row in TABLE} == set(names)


# -- others' mistakes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Naive:
    """FedBuff and FedAsync as one would write them down, with places to go wrong."""

    half_when_fresh: bool = False
    against_current: bool = False
    full_weights: bool = False
    by_weights: bool = False
    without_alpha: bool = False
    own_model_first: bool = False

    def weight_of(self, options, staleness):
        if self.half_when_fresh:
            weight = 1 / (1 + sqrt(staleness + 1))
        else:
            weight = 1.0 if options.staleness.kind == "constant" else (1 + staleness) ** -0.5
        mixes = options.name == "fedasync" and not self.without_alpha
        return weight * options.alpha if mixes else weight

    def __call__(self, options):
        buffer_size = options.buffer_size

        def begun(params):
            return params.copy() if self.own_model_first else np.zeros_like(params)

        def init(params):
            vectors = {"params": params.copy(), "total": begun(params)}
            return State(0, vectors, scalars={"weights": 0.0})

        def step_of(params, contribution, views):
            base = views[contribution.base_version]
            if self.full_weights or self.own_model_first:
                return base + contribution.delta.values
            if self.against_current or options.name == "fedasync":
                return base + contribution.delta.values - params
            return contribution.delta.values

        def fold(state, contribution, views):
            params, total = state.vectors["params"], state.vectors["total"]
            weight = self.weight_of(options, contribution.staleness)
            total += F32(weight) * step_of(params, contribution, views)
            weights = state.scalars["weights"] + weight
            state = replace(state, buffered=state.buffered + 1, scalars={"weights": weights})
            if options.name != "fedasync" and state.buffered < buffer_size:
                return state, Buffered(weight, frozenset())
            divisor = weights if self.by_weights else buffer_size
            mean = total / F32(divisor)
            params[:] = mean if self.own_model_first else params + mean
            total[:] = begun(params)
            state = replace(state, buffered=0, version=state.version + 1)
            return replace(state, scalars={"weights": 0.0}), Advanced(weight, frozenset())

        return Strategy(init, fold, lambda state: (state, Unchanged()))


MISTAKES = {
    "NVFlare: staleness is taken after the version was raised, and fresh weighs 1/2": Naive(
        half_when_fresh=True
    ),
    "APPFL: the delta is taken against the current model, not its base": Naive(
        against_current=True
    ),
    "FedML: whole models are added, not deltas": Naive(full_weights=True),
    "the buffer is divided by the sum of the weights, not by K": Naive(by_weights=True),
    "Flotilla: FedAsync without alpha, so that a fresh device replaces the model": Naive(
        without_alpha=True
    ),
    "SDFLMQ: the sum begins with the aggregator's own model": Naive(own_model_first=True),
}
PLAIN = [row for row in TABLE if row.plain]


def test_the_same_written_down_without_a_mistake_keeps_to_the_table():
    assert [row.title for row in PLAIN if differs_at(row, Naive()) is not None] == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_table_refuses_what_others_got_wrong(mistake):
    refused = [row.title for row in PLAIN if differs_at(row, MISTAKES[mistake]) is not None]
    assert refused, "no row tells this mistake from the paper"
