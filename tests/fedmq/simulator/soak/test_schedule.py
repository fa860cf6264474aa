from collections import Counter
from itertools import islice
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from fedmq.simulator.soak.schedule import KINDS, Fault, schedule
from fedmq.simulator.soak.strike import STRIKES

MANY = 1000
EVERY = {(kind.name, place) for kind in KINDS for place in kind.places}
LONGEST_S = {(kind.name, place): kind.longest_s for kind in KINDS for place in kind.places}


def first(count: int, seed: int, *, per_minute: float = 24.0, devices: int = 6) -> list[Fault]:
    return list(islice(schedule(seed, per_minute=per_minute, devices=devices), count))


@LEAN
@given(seed=st.integers(0, 2**64), short=st.integers(0, 60), more=st.integers(0, 60))
def test_one_seed_is_one_schedule_and_a_longer_one_only_goes_on(
    seed: int, short: int, more: int
) -> None:
    assert first(short, seed) == first(short + more, seed)[:short]


@LEAN
@given(seed=st.integers(0, 2**32))
def test_another_seed_is_another_schedule(seed: int) -> None:
    assert first(20, seed) != first(20, seed + 1)


def test_a_seed_means_the_same_on_every_machine_and_for_ever() -> None:
    told = [(f.kind, f.place, f.which, f.after_s, f.lasts_s, f.dice) for f in first(3, 1)]
    assert told == [
        ("old_card", "device", 1, 0.809, 0.183, 391770381),
        ("reset", "device", 0, 0.58, 0.083, 193549110),
        ("clock", "redis", 0, 1.247, 2.22, 391204154),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_every_kind_strikes_every_place_that_it_can(seed: int) -> None:
    seen = Counter((fault.kind, fault.place) for fault in first(MANY, seed))
    assert seen.keys() == EVERY


@LEAN
@given(
    seed=st.integers(0, 2**32),
    devices=st.integers(1, 64),
    per_minute=st.floats(0.1, 120.0),
)
def test_no_fault_is_out_of_its_bounds(seed: int, devices: int, per_minute: float) -> None:
    many = {"device": devices, "bridge": 2, "aggregator": 2}
    for number, fault in enumerate(first(100, seed, per_minute=per_minute, devices=devices)):
        assert fault.number == number
        assert 0 <= fault.which < many.get(fault.place, 1)
        longest_s = LONGEST_S[fault.kind, fault.place]
        assert 0.1 * longest_s - 0.001 <= fault.lasts_s <= longest_s
        assert 0 < fault.after_s <= max(1.8 * 60.0 / per_minute, 0.2)
        assert 0 <= fault.dice < 2**32


@pytest.mark.parametrize("devices", [1, 6])
def test_nobody_is_spared(devices: int) -> None:
    struck = {(fault.place, fault.which) for fault in first(MANY, 2, devices=devices)}
    assert struck >= {("device", number) for number in range(devices)}
    assert struck >= {(place, which) for place in ("bridge", "aggregator") for which in (0, 1)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("per_minute", [1.0, 10.0, 24.0])
def test_as_many_come_in_a_minute_as_were_asked_for(seed: int, per_minute: float) -> None:
    faults = first(4 * MANY, seed, per_minute=per_minute)
    period_s = mean(fault.after_s + fault.lasts_s for fault in faults)
    assert 60.0 / period_s == pytest.approx(per_minute, rel=0.04)


def test_each_kind_has_its_strike_and_each_strike_its_kind() -> None:
    assert STRIKES.keys() == {kind.name for kind in KINDS}


def test_each_kind_says_by_what_means_and_no_place_has_two() -> None:
    assert len(EVERY) == sum(len(kind.places) for kind in KINDS)
    for kind in KINDS:
        assert len(kind.means) > 10
        assert kind.weight > 0
        assert kind.longest_s > 0
