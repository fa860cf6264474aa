import random
from itertools import islice
from statistics import mean

import pytest

from fedmq.simulator.outages import Ending, Weather, windows

MANY = 20_000


def test_one_seed_is_one_weather() -> None:
    first, again, other = (
        list(islice(windows(Weather(), random.Random(seed)), 50)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_windows_have_the_mean_lengths_and_endings_that_were_asked_for() -> None:
    weather = Weather(online_s=3.0, offline_s=7.0, mute_share=0.25)
    seen = list(islice(windows(weather, random.Random(0)), MANY))
    assert mean(w.online_s for w in seen) == pytest.approx(3.0, rel=0.05)
    assert mean(w.offline_s for w in seen) == pytest.approx(7.0, rel=0.05)
    assert mean(w.ending is Ending.MUTE for w in seen) == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(("share", "ending"), [(0.0, Ending.RESET), (1.0, Ending.MUTE)])
def test_a_share_of_none_or_all_means_it(share: float, ending: Ending) -> None:
    seen = islice(windows(Weather(mute_share=share), random.Random(0)), 200)
    assert {w.ending for w in seen} == {ending}


def test_no_window_is_negative() -> None:
    seen = islice(windows(Weather(), random.Random(0)), MANY)
    assert all(w.online_s >= 0 and w.offline_s >= 0 for w in seen)
