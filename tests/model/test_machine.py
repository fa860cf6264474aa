"""Every update is folded once, whatever breaks; and the machine finds what was planted."""

from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from schemas.errors import InvariantError
from tests.model.bugs import BUGS, Bug
from tests.model.machine import Machine
from tests.model.redis_model import Mode

HONEST: Final = settings(
    max_examples=70,
    stateful_step_count=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
HUNT: Final = settings(HONEST, max_examples=3000, phases=(Phase.generate,))
"""Ends at the first find."""


@pytest.mark.parametrize("mode", ["always", "everysec", "replica"])
def test_every_update_is_folded_once_whatever_breaks(mode: Mode) -> None:
    class Honest(Machine):
        modes = (mode,)

    run_state_machine_as_test(Honest, settings=HONEST)


MODES: Final[dict[Bug, tuple[Mode, ...]]] = {
    "late_ack_on_a_reused_client": ("always",),
    "receipt_before_fsync": ("everysec",),
    "receipt_before_replica": ("replica",),
    "receipt_of_a_redis_that_was": ("everysec", "replica"),
    "standing_read_after_the_wait": ("everysec", "replica"),
    "update_of_another_start_replaced": ("always",),
}
"""Where a bug can be seen at all, or soonest."""


@pytest.mark.parametrize("bug", BUGS)
def test_the_machine_finds_a_planted_bug(bug: Bug) -> None:
    class Planted(Machine):
        bugs = frozenset({bug})
        modes = MODES.get(bug, Machine.modes)

    with pytest.raises((AssertionError, InvariantError)):
        run_state_machine_as_test(Planted, settings=HUNT)
