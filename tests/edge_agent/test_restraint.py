import random

import pytest

from edge_agent.restraint import Restraint
from schemas.watch import Busy


def busy(pause_s: float) -> Busy:
    return Busy("slow", pause_s, 1)


def test_without_a_word_nothing_is_held_back() -> None:
    restraint = Restraint(random.Random(1))
    restraint.sent(100.0)
    restraint.hear(None, 100.0)
    assert restraint.left_s(100.0) == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_one_update_goes_out_after_each_pause_give_or_take_a_fifth(seed: int) -> None:
    restraint = Restraint(random.Random(seed))
    restraint.hear(busy(10.0), 100.0)
    first = restraint.left_s(100.0)
    assert 8.0 <= first <= 12.0
    assert restraint.left_s(100.0 + first) == 0.0
    restraint.sent(200.0)
    assert 8.0 <= restraint.left_s(200.0) <= 12.0
    assert restraint.left_s(200.0) != first


def test_said_over_and_over_it_puts_no_try_off() -> None:
    restraint = Restraint(random.Random(1))
    for second in range(13):
        restraint.hear(busy(10.0), 100.0 + second)
    assert restraint.left_s(112.0) == 0.0


def test_a_shorter_pause_brings_the_next_try_forward() -> None:
    restraint = Restraint(random.Random(1))
    restraint.hear(busy(3600.0), 100.0)
    restraint.hear(busy(1.0), 101.0)
    assert restraint.left_s(101.0) <= 1.2


@pytest.mark.parametrize(("pause_s", "longest"), [(3600.0, 5.0), (2.0, 2.0), (0.0, 0.0)])
def test_a_fleet_comes_back_over_some_seconds(pause_s: float, longest: float) -> None:
    left = []
    for seed in range(50):
        restraint = Restraint(random.Random(seed))
        restraint.hear(busy(pause_s), 100.0)
        restraint.hear(None, 101.0)
        left.append(restraint.left_s(101.0))
        restraint.sent(200.0)
        assert restraint.left_s(200.0) == 0.0
    assert max(left) <= longest
    if longest:
        assert min(left) < longest / 4
        assert max(left) > longest * 3 / 4
