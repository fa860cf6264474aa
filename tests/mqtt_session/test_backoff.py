import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from mqtt_session.backoff import Backoff

BOUNDS = st.builds(Backoff, st.floats(0.001, 10), st.floats(0.001, 600))


class Fixed(random.Random):
    """A generator that always gives the same number."""

    def __init__(self, number: float) -> None:
        super().__init__(1)
        self._number = number

    def random(self) -> float:
        return self._number


@LEAN
@given(bounds=BOUNDS, failures=st.integers(1, 10**9), seed=st.integers(0, 100))
def test_a_delay_is_above_0_and_never_beyond_the_longest(bounds, failures, seed):
    delay = bounds.delay_s(failures, random.Random(seed))
    assert 0 < delay <= bounds.longest_s
    assert delay <= bounds.first_s * 2 ** min(failures - 1, 64)


@pytest.mark.parametrize(
    ("failures", "longest"), [(1, 0.5), (2, 1), (3, 2), (7, 32), (8, 60), (1_000_000, 60)]
)
def test_the_bound_doubles_with_every_failure_up_to_the_longest(failures, longest) -> None:
    assert Backoff().delay_s(failures, Fixed(0)) == longest


def test_a_fleet_does_not_come_back_all_at_once() -> None:
    rng = random.Random(1)
    delays = sorted(Backoff().delay_s(8, rng) for _ in range(1000))
    for quarter in range(4):
        share = sum(15 * quarter < delay <= 15 * (quarter + 1) for delay in delays)
        assert 200 < share < 300
