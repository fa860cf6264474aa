from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from aggregator.clock import LogClock


def test_while_redis_clock_is_right_it_is_the_time() -> None:
    clock = LogClock()
    assert clock.now_ms(1000, 1000, 5.0) == 1000
    assert clock.now_ms(1000, 1700, 5.6) == 1700


def test_when_redis_clock_was_set_back_time_goes_on_from_the_newest_entry() -> None:
    clock = LogClock()
    assert clock.now_ms(1_000_000, 50, 5.0) == 1_000_000
    assert clock.now_ms(1_000_000, 60, 7.5) == 1_002_500
    assert clock.now_ms(1_004_000, 70, 8.0) == 1_004_000
    assert clock.now_ms(1_004_000, 80, 8.5) == 1_004_500


@LEAN
@given(steps=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 10**6), st.floats(0, 10))))
def test_it_is_never_before_the_newest_entry(steps: list[tuple[int, int, float]]) -> None:
    clock, newest, monotonic_s = LogClock(), 0, 0.0
    for more, redis_ms, passed in steps:
        newest, monotonic_s = newest + more, monotonic_s + passed
        assert clock.now_ms(newest, redis_ms, monotonic_s) >= max(newest, redis_ms)
