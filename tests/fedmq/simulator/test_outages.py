import math
import random
from itertools import islice, pairwise
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmq.simulator.outages import Ending, Outages, meanwhile, next_outage, windows
from schemas.errors import ConfigError

MANY = 20_000
FLAKY = Outages(online_s=2.5, offline_s=4.0, mute_share=0.5, half_open_share=0.2)


def test_one_seed_is_one_weather() -> None:
    first, again, other = (
        list(islice(windows(FLAKY, random.Random(seed)), 50)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_windows_have_the_mean_lengths_and_endings_that_were_asked_for() -> None:
    outages = Outages(online_s=3.0, offline_s=7.0, mute_share=0.25, half_open_share=0.1)
    seen = list(islice(windows(outages, random.Random(0)), MANY))
    assert mean(w.online_s for w in seen) == pytest.approx(3.0, rel=0.05)
    assert mean(w.offline_s for w in seen) == pytest.approx(7.0, rel=0.05)
    assert mean(w.ending is Ending.MUTE for w in seen) == pytest.approx(0.25, abs=0.02)
    assert mean(w.ending is Ending.HALF_OPEN for w in seen) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("mute", "half", "ending"),
    [(0.0, 0.0, Ending.RESET), (1.0, 0.0, Ending.MUTE), (0.0, 1.0, Ending.HALF_OPEN)],
)
def test_a_share_of_none_or_all_means_it(mute: float, half: float, ending: Ending) -> None:
    outages = Outages(online_s=1.0, offline_s=1.0, mute_share=mute, half_open_share=half)
    assert {w.ending for w in islice(windows(outages, random.Random(0)), 200)} == {ending}


def test_no_window_is_negative() -> None:
    seen = islice(windows(FLAKY, random.Random(0)), MANY)
    assert all(w.online_s >= 0 and w.offline_s >= 0 for w in seen)


def test_scheduled_outages_alone_come_to_the_second_and_then_never_again() -> None:
    outages = Outages(scheduled=((10.0, 12.0), (20.0, 25.0)))
    seen = [(w.online_s, w.offline_s) for w in windows(outages, random.Random(0))]
    assert seen == [(10.0, 2.0), (8.0, 5.0)]


def test_an_outage_may_last_for_ever() -> None:
    outages = Outages(scheduled=((1.0, math.inf),))
    assert [w.offline_s for w in windows(outages, random.Random(0))] == [math.inf]


def test_a_link_without_outages_has_no_windows() -> None:
    assert list(windows(Outages(), random.Random(0))) == []
    assert next_outage(Outages(), 5.0, random.Random(0)) is None


@pytest.mark.parametrize("pause", [0.5, 2.0, 100.0])
def test_skipping_a_time_meets_outages_as_often_as_living_through_it(pause: float) -> None:
    outages = Outages(online_s=2.5, offline_s=4.0)
    rng = random.Random(0)
    lived = 0
    for _ in range(MANY // 4):
        now = 0.0
        while (outage := next_outage(outages, now, rng)) and outage.end_s <= pause:
            now = outage.end_s
        assert outage is not None
        lived += outage.start_s <= pause
    skipped = [meanwhile(outages, 0.0, pause, rng) for _ in range(MANY // 4)]
    lengths = [each.end_s - each.start_s for each in skipped if each]
    assert len(lengths) / (MANY // 4) == pytest.approx(lived / (MANY // 4), abs=0.03)
    assert mean(lengths) == pytest.approx(4.0, rel=0.15)


@given(st.integers(0, 10_000), st.lists(st.floats(0.1, 50.0), max_size=8))
def test_scheduled_and_random_outages_together_are_apart_and_miss_nothing(
    seed: int, steps: list[float]
) -> None:
    marks = [sum(steps[: n + 1]) for n in range(len(steps))]
    scheduled = tuple(zip(marks[::2], marks[1::2], strict=False))
    outages = Outages(online_s=5.0, offline_s=5.0, scheduled=scheduled)
    rng = random.Random(seed)
    now, seen = 0.0, []
    while now < 500.0:
        outage = next_outage(outages, now, rng)
        assert outage is not None
        seen.append(outage)
        now = outage.end_s
    assert all(first.end_s <= then.start_s for first, then in pairwise(seen))
    for begin, end in scheduled:
        assert any(each.start_s <= begin and end <= each.end_s for each in seen)


@pytest.mark.parametrize(
    ("field", "outages"),
    [
        ("outages.online_s", {"online_s": 0.0}),
        ("outages.offline_s", {"offline_s": -1.0}),
        ("outages.mute_share", {"mute_share": 1.1}),
        ("outages.half_open_share", {"mute_share": 0.6, "half_open_share": 0.6}),
        ("outages.scheduled", {"scheduled": ((1.0, 3.0), (2.0, 4.0))}),
    ],
)
def test_what_cannot_be_is_refused_by_name(field: str, outages: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as refused:
        Outages(**outages)  # type: ignore[arg-type]
    assert refused.value.field == field
