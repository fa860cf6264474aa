import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from broker.pressure import CALM_S, PAUSE_S, Gauge, pause_s
from schemas.names import TaskName

TASK, OTHER = TaskName("pumps"), TaskName("fans")


def gauge() -> Gauge:
    return Gauge(slow_s=2.0, log_max_bytes=1000)


def test_nothing_is_the_matter_at_first() -> None:
    assert gauge().why(TASK, 0.0) == ""


def test_a_refused_batch_makes_every_task_wait_until_one_is_taken() -> None:
    seen = gauge()
    seen.refused()
    assert (seen.why(TASK, 1.0), seen.why(OTHER, 1.0)) == ("full", "full")
    seen.appended(0.1, 2.0)
    assert seen.why(TASK, 2.0) == ""


def test_a_slow_batch_makes_everybody_wait_until_it_was_quick_for_a_while() -> None:
    seen = gauge()
    seen.appended(2.1, 10.0)
    seen.appended(0.1, 11.0)
    assert seen.why(TASK, 10.0 + CALM_S - 0.1) == "slow"
    assert seen.why(TASK, 10.0 + CALM_S) == ""


def test_a_batch_that_took_just_so_long_is_not_slow() -> None:
    seen = gauge()
    seen.appended(2.0, 10.0)
    assert seen.why(TASK, 10.0) == ""


def test_a_redis_that_is_nearly_full_makes_every_task_wait_until_there_is_room() -> None:
    seen = gauge()
    seen.filled(900, 1000)
    assert seen.why(TASK, 0.0) == ""
    seen.filled(901, 1000)
    assert (seen.why(TASK, 0.0), seen.why(OTHER, 0.0)) == ("full", "full")
    seen.appended(0.1, 1.0)  # what is under way is still taken
    seen.filled(851, 1000)
    assert seen.why(TASK, 1.0) == "full"
    seen.filled(850, 1000)
    assert seen.why(TASK, 1.0) == ""


def test_a_redis_without_a_bound_is_never_nearly_full() -> None:
    seen = gauge()
    seen.filled(901, 1000)
    seen.filled(1 << 40, 0)
    assert seen.why(TASK, 0.0) == ""


def test_only_the_task_whose_log_is_too_large_is_behind_and_not_for_one_byte_to_and_fro() -> None:
    seen = gauge()
    seen.weighed(TASK, 1000)
    assert not seen.is_behind(TASK)
    seen.weighed(TASK, 1001)
    assert seen.is_behind(TASK)
    assert (seen.why(TASK, 0.0), seen.why(OTHER, 0.0)) == ("behind", "")
    seen.weighed(TASK, 950)
    assert seen.is_behind(TASK)
    seen.weighed(TASK, 900)
    assert not seen.is_behind(TASK)


def test_without_a_bound_no_log_is_too_large() -> None:
    seen = Gauge(slow_s=1.0, log_max_bytes=0)
    seen.weighed(TASK, 1 << 40)
    assert not seen.is_behind(TASK)


@LEAN
@given(a=st.floats(0, 1e6), b=st.floats(0, 1e6))
def test_the_longer_it_has_lasted_the_longer_the_pause_within_bounds(a: float, b: float) -> None:
    early, late = sorted((a, b))
    assert PAUSE_S[0] <= pause_s(early) <= pause_s(late) <= PAUSE_S[1]


@pytest.mark.parametrize(("busy_for_s", "pause"), [(0.0, 2.0), (7.5, 7.5), (1e9, 60.0)])
def test_pauses_to_expect(busy_for_s: float, pause: float) -> None:
    assert pause_s(busy_for_s) == pause
