"""Which conditions a device does not meet, and what it says of them."""

import pytest

from edge_agent.conditions.readings import Readings, first_known, unmet
from schemas.conditions import Conditions

GOOD = Readings(
    charging=True, battery=0.9, unmetered=True, temperature_c=30.0, hour=23.0, new_samples=50
)
ALL = Conditions(
    charging=True,
    battery_above=0.5,
    unmetered=True,
    cooler_than_c=60.0,
    hours="22-6",
    new_samples=20,
)


def but(**changed: object) -> Readings:
    values = {name: getattr(GOOD, name) for name in Readings.__slots__}
    return Readings(**(values | changed))


def test_a_device_that_meets_everything_may_train():
    assert unmet(ALL, GOOD) == []


def test_nothing_is_asked_of_a_device_of_which_nothing_is_known():
    assert unmet(Conditions(), Readings()) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"charging": False}, "not charging"),
        ({"battery": 0.5}, "battery at 50%, must be above 50%"),
        ({"unmetered": False}, "the link is metered"),
        ({"temperature_c": 60.0}, "60.0 °C, must be below 60"),
        ({"hour": 12.0}, "12 h is not within 22-6"),
        ({"new_samples": 19}, "19 new samples, must be 20"),
    ],
    ids=str,
)
def test_each_condition_is_told_by_itself(changed, sentence):
    assert unmet(ALL, but(**changed)) == [sentence]


@pytest.mark.parametrize(
    "name", ["charging", "battery", "unmetered", "temperature_c", "new_samples"]
)
def test_what_is_not_known_is_not_met_and_says_what_to_do(name):
    (sentence,) = unmet(ALL, but(**{name: None}))
    assert sentence.startswith(name)
    assert "--provider" in sentence


def test_a_device_without_a_clock_cannot_keep_hours_and_is_not_held_to_them():
    assert unmet(ALL, but(hour=None)) == []


def test_the_first_provider_that_knows_tells_it():
    look = first_known(
        [
            lambda: Readings(charging=False),
            lambda: Readings(charging=True, battery=0.2),
            lambda: Readings(battery=0.8, hour=1.0),
        ]
    )
    assert look() == Readings(charging=False, battery=0.2, hour=1.0)
