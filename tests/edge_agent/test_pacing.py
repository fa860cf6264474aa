"""What one device makes of a hint, and of its own speed."""

import msgspec
import pytest

from edge_agent.pacing import STARTS_MAX, Pacer, Waiting, from_disk, to_disk
from edge_agent.trainer import TrainResult
from schemas.pace import SCORE, Facts, PaceHint, PaceOptions
from schemas.task import TrainOptions

PACE = PaceOptions(concurrency=10, lease_s=100.0)


SLEEPS = PaceHint(1e-4)
"""Under which pump-1 is first drawn for base (1, 1) in attempt 9, for (1, 2) in attempt 11."""
SET_S = 1.8e9
"""What a clock tells that was set."""
NEVER_S = 40.0
"""What one tells that never was."""


def waits_s(
    pacer: Pacer, now_s: float, clock_s: float = NEVER_S, base: tuple[int, int] = (1, 1)
) -> float:
    """What the agent does: ask, and write down what is to be written down."""
    return pacer.waits_s(PACE, base, now_s, clock_s, Facts())


class Disk:
    """A device's disk, and the lives of the process on it."""

    def __init__(self) -> None:
        self.record: bytes | None = None
        self.writes = 0

    def life(self, clock_s: float = NEVER_S, base: tuple[int, int] = (1, 1)) -> float:
        """One life, shorter than a lease; it hears the hint only when it has none."""
        pacer = Pacer("pump-1", self.record)
        pacer.hint = None if self.record else SLEEPS
        found = [waits_s(pacer, now_s, clock_s + now_s, base) for now_s in (0.0, 5.0)]
        if (record := pacer.unwritten) is not None:
            self.record, self.writes = record, self.writes + 1
            pacer.written(record)
        assert pacer.unwritten is None
        return min(found)


def test_who_has_heard_no_hint_trains_on_every_model():
    pacer = Pacer("pump-1")
    assert waits_s(pacer, 0.0) == 0.0
    assert pacer.unwritten is None


def test_who_is_not_drawn_waits_for_the_lease_and_is_drawn_in_the_end():
    pacer = Pacer("pump-1")
    pacer.hint = SLEEPS
    assert waits_s(pacer, 50.0) == 100.0
    assert waits_s(pacer, 90.0) == 60.0
    assert waits_s(pacer, 150.0) == 100.0
    assert waits_s(pacer, 50.0 + 14 * 100.0) == 0.0
    assert waits_s(pacer, 1e4, base=(1, 2)) == 100.0, "another base, another lease"
    off = msgspec.structs.replace(PACE, concurrency=0)
    assert pacer.waits_s(off, (1, 2), 1e4, NEVER_S, Facts()) == 0.0


def test_a_device_without_a_clock_that_lives_for_less_than_a_lease_draws_with_every_start():
    disk = Disk()
    waits = [disk.life() for _ in range(10)]
    assert all(waits[:9])
    assert waits[9] == 0.0
    assert disk.writes == 9, "once a start, and not when it trains"


def test_a_device_with_a_clock_draws_again_when_a_lease_has_passed_while_it_was_off():
    disk = Disk()
    assert disk.life(SET_S)
    assert disk.life(SET_S + 9 * 100.0) == 0.0
    late = Disk()
    assert late.life(NEVER_S)
    assert late.life(SET_S), "its clock was set only now: nothing can be told by it"
    assert late.life(SET_S + 9 * 100.0) == 0.0


def test_a_timer_that_stands_still_in_sleep_is_looked_past_by_the_clock():
    pacer = Pacer("pump-1")
    pacer.hint = SLEEPS
    assert waits_s(pacer, 0.0, SET_S) == 100.0
    assert waits_s(pacer, 1.0, SET_S + 190.0) == 10.0
    assert waits_s(pacer, 2.0, SET_S - 1e6) == 98.0, "a clock that was put back tells nothing"
    assert waits_s(pacer, 3.0, SET_S + 9 * 100.0) == 0.0


def test_after_many_starts_a_long_life_still_draws_once_a_lease():
    disk = Disk()
    for _ in range(5):
        disk.life()
    pacer = Pacer("pump-1", disk.record)
    assert waits_s(pacer, 0.0) == 100.0
    assert waits_s(pacer, 100.0) == 100.0
    assert waits_s(pacer, 399.0) == 1.0
    assert waits_s(pacer, 400.0) == 0.0, "5 starts before this one, and 4 leases"


def test_another_base_is_begun_from_the_first_attempt_and_written_once():
    disk = Disk()
    for _ in range(9):
        disk.life()
    assert all(disk.life(base=(1, 2)) for _ in range(3))
    assert disk.writes == 12
    kept = from_disk(disk.record)
    assert kept is not None
    assert (kept.base, kept.starts) == ((1, 2), 3)


def test_starts_are_not_counted_for_ever():
    most = to_disk(Waiting((1, 1), 0.0, STARTS_MAX, PaceHint(1e-6, 1e30)))
    never = msgspec.structs.replace(PACE, select="fair", explore=0.0)
    pacer = Pacer("pump-1", most)
    assert pacer.waits_s(never, (1, 1), 0.0, NEVER_S, Facts(folded=9)) > 0
    assert pacer.unwritten is None, "the disk is spared"


GOOD = to_disk(Waiting((1, 1), SET_S, 14, SLEEPS))


@pytest.mark.parametrize(
    "raw",
    [
        None,
        b"",
        GOOD[:-1],
        GOOD + b"x",
        b"\xff" * len(GOOD),
        bytes(len(GOOD)),
        to_disk(Waiting((1, 1), float("nan"), 14, SLEEPS)),
        to_disk(Waiting((1, 1), SET_S, STARTS_MAX + 1, SLEEPS)),
        to_disk(Waiting((1, 1), SET_S, 14, PaceHint(2.0))),
        to_disk(Waiting((1, 1), SET_S, 14, PaceHint(0.5, float("inf")))),
    ],
)
def test_what_cannot_be_believed_of_the_disk_counts_as_none(raw: bytes | None):
    assert from_disk(GOOD) is not None
    assert from_disk(raw) is None
    pacer = Pacer("pump-1", raw)
    assert waits_s(pacer, 0.0, SET_S + 1e5) == 0.0, "no hint, as on a new disk"
    pacer.hint = SLEEPS
    assert waits_s(pacer, 0.0, SET_S + 1e5) == 100.0


def test_it_makes_as_many_steps_as_it_can_in_the_time():
    pace = PaceOptions(seconds=10.0, steps_min=2, steps_max=500)
    pacer, train = Pacer("pump-1"), TrainOptions(epochs=2, batch_size=10)
    assert pacer.asked(pace, train) == train, "its speed is not known yet"
    pacer.trained(train, TrainResult({}, 95), 5.0)  # 20 steps: 4 a second
    asked = pacer.asked(pace, train)
    assert (asked.steps, asked.epochs) == (40, 4)
    pacer.trained(asked, TrainResult({}, 95), 5.0)  # 8 a second
    assert pacer.asked(pace, train).steps == 52
    assert Pacer("x").asked(PaceOptions(), train) == train
    pacer.trained(train, TrainResult({}, 95, {"steps": 1e6}), 1.0)
    assert pacer.asked(pace, train).steps == 500


def test_a_score_is_sent_only_where_it_selects():
    pacer = Pacer("pump-1")
    pacer.trained(TrainOptions(), TrainResult({}, 10, {"loss_before": 2.0}), 1.0)
    assert pacer.metrics(PACE) == {}
    assert pacer.metrics(msgspec.structs.replace(PACE, select="utility")) == {SCORE: 20.0}
    assert pacer.metrics(msgspec.structs.replace(PACE, select="battery")) == {}
