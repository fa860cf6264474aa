import sys

import pytest

from edge_agent.conditions.readings import Readings
from edge_agent.conditions.systemd import run, systemd


@pytest.mark.parametrize(
    ("power", "metered", "readings"),
    [
        ((0, ""), (0, "u 2"), Readings(charging=True, unmetered=True)),
        ((1, ""), (0, "u 1"), Readings(charging=False, unmetered=False)),
        (None, (0, "u 4"), Readings(unmetered=True)),
        ((0, ""), (0, "u 3"), Readings(charging=True, unmetered=False)),
        ((4, ""), (0, "u 0"), Readings()),
        (None, (1, "u 2"), Readings()),
        (None, None, Readings()),
    ],
    ids=str,
)
def test_answers_become_readings(power, metered, readings):
    answers = {"systemd-ac-power": power, "busctl": metered}
    assert systemd(lambda command: answers[command[0]]) == readings


def test_a_program_that_is_not_there_tells_nothing():
    assert run(["no-such-program-anywhere"]) is None


def test_a_program_that_is_there_tells_its_code_and_its_output():
    assert run([sys.executable, "-c", "print('u 2'); raise SystemExit(3)"]) == (3, "u 2")
