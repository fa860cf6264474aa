"""Batteries: worked out late, they hold what they would have held if somebody had watched."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.simulator.virtual.energy import (
    HOUR_S,
    Battery,
    charge_of,
    charged,
    charging_s,
    drained,
    full,
)
from fedmq.simulator.virtual.fleet import EnergyOptions
from tests.laws import LEAN

NIGHTS = EnergyOptions(battery_j=1e9, charge_w=2.0, charge_from_h=22.0, charge_hours=5.0)
MOMENTS = st.floats(0, 5 * 86_400)


@LEAN
@given(since=MOMENTS, between=MOMENTS, until=MOMENTS)
def test_it_does_not_matter_how_often_somebody_looks(
    since: float, between: float, until: float
) -> None:
    since, between, until = sorted([since, between, until])
    begun = Battery(5.0, since)
    at_once = charged(begun, NIGHTS, until)
    in_between = charged(charged(begun, NIGHTS, between), NIGHTS, until)
    assert in_between.joules == pytest.approx(at_once.joules, abs=1e-3)


def test_a_night_charges_for_its_hours_across_midnight() -> None:
    assert charging_s(NIGHTS, 21 * HOUR_S, 23 * HOUR_S) == HOUR_S
    assert charging_s(NIGHTS, 21 * HOUR_S, 45 * HOUR_S) == 5 * HOUR_S
    assert charging_s(NIGHTS, 4 * HOUR_S, 20 * HOUR_S) == 0


def test_a_battery_holds_no_more_than_it_can_and_no_less_than_nothing() -> None:
    small = EnergyOptions(battery_j=10.0, charge_hours=24.0)
    assert charged(Battery(9.0, 0.0), small, 1e6).joules == 10.0
    assert drained(full(small, 0.0), 11.0).joules == 0.0
    assert charge_of(drained(full(small, 0.0), 4.0), small) == pytest.approx(0.6)
    mains = full(EnergyOptions(), 0.0)
    assert drained(mains, 1e9).joules == inf
    assert charge_of(mains, EnergyOptions()) is None
