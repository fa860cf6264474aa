"""A clock, the trainer, and the user's own function."""

import math
import time
from pathlib import Path

import pytest

from edge_agent.conditions.looking import looking
from edge_agent.conditions.providers import CLOCK_SINCE_S, clock, samples_of, told_by, usual
from edge_agent.conditions.readings import Readings
from edge_agent.settings import AgentSettings
from schemas.conditions import Conditions
from schemas.errors import ConfigError


class Counting:
    def __init__(self, count: int) -> None:
        self.count = count

    def new_samples(self) -> int:
        return self.count


def settings(**given: object) -> AgentSettings:
    return AgentSettings(device="d", task="t", trainer="m:T", **given)  # type: ignore[arg-type]


def test_the_clock_tells_the_local_hour():
    look = clock(lambda: CLOCK_SINCE_S + 1.75 * 3600, time.gmtime)
    assert look() == Readings(hour=1.75)


def test_a_clock_that_was_never_set_is_no_clock():
    assert clock(lambda: 3600.0, time.gmtime)() == Readings()


def test_a_trainer_may_count_its_new_samples():
    assert samples_of(Counting(7))() == Readings(new_samples=7)
    assert samples_of(object())() == Readings()


def test_the_users_function_goes_before_all_others():
    provider = usual(Counting(3), lambda: {"new_samples": 9, "charging": False})
    now = provider()
    assert (now.new_samples, now.charging) == (9, False)


@pytest.mark.parametrize(
    ("told", "named"),
    [
        ({"chargin": True}, "chargin"),
        ({"battery": "full"}, "battery"),
        ({"unmetered": 1}, "unmetered"),
        (Readings(charging="yes"), "charging"),  # type: ignore[arg-type]
        (5, "a mapping"),
        (None, "a mapping"),
    ],
    ids=str,
)
def test_what_is_no_reading_is_refused_by_its_key(told, named):
    with pytest.raises(ConfigError, match=named) as refused:
        told_by(lambda: told)()
    assert refused.value.field == "provider"


@pytest.mark.parametrize(
    "told",
    [
        {"battery": 85.0},
        {"battery": -0.1},
        {"battery": math.nan},
        {"temperature_c": math.inf},
        {"hour": 25.0},
        {"hour": math.nan},
        {"new_samples": -1},
        Readings(battery=85.0),
    ],
    ids=str,
)
def test_what_no_sensor_can_say_meets_no_condition(told):
    with pytest.raises(ValueError, match="must be"):
        told_by(lambda: told)()


@pytest.mark.parametrize(
    "told", [{"battery": 1.0}, {"battery": 0}, {"hour": 24.0}, {"temperature_c": -40.0}], ids=str
)
def test_the_ends_of_a_scale_are_readings(told):
    assert told_by(lambda: told)() == Readings(**told)


def test_a_device_that_cannot_be_looked_at_does_not_train_and_says_why(tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("def now():\n    raise OSError('no sensor')\n")
    monkeypatch.syspath_prepend(tmp_path)
    look = looking(settings(provider="broken:now"), object())
    assert look(Conditions(charging=True)) == [
        "the device cannot be looked at: OSError: no sensor",
    ]
    assert look(Conditions()) == [], "nobody asks, so nobody looks"


def test_a_provider_that_can_never_work_ends_the_agent(tmp_path, monkeypatch):
    (tmp_path / "wrong.py").write_text("def now():\n    return {'chargin': True}\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="chargin"):
        looking(settings(provider="wrong:now"), object())(Conditions(charging=True))


def test_the_owner_may_ask_more_than_the_task_and_each_sentence_is_told_once(
    tmp_path: Path, monkeypatch
):
    (tmp_path / "mine.py").write_text(
        "def now():\n    return {'charging': False, 'battery': 0.1}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    owner = Conditions(charging=True, battery_above=0.5)
    look = looking(settings(provider="mine:now", when=owner), object())
    assert look(Conditions(charging=True)) == [
        "not charging",
        "battery at 10%, must be above 50%",
    ]
    assert looking(settings(provider="mine:now"), object())(Conditions()) == []


def test_a_provider_that_cannot_be_imported_is_named():
    with pytest.raises(ConfigError) as refused:
        looking(settings(provider="nothing:here"), object())
    assert refused.value.field == "provider"
