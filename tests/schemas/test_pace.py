"""Who is drawn, and how a device is scored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.pace import Facts, PaceHint, PaceOptions, score, takes_part
from tests.laws import LEAN

FLEET = [f"pump-{number}" for number in range(4000)]


def drawn(share: float, *, attempt: int = 0, own: float | None = 1.0, explore: float = 0.1) -> set:
    hint = PaceHint(share, 1.0)
    return {d for d in FLEET if takes_part(d, 1, 7, attempt, hint, own, explore)}


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_about_the_share_of_the_fleet_is_drawn(share):
    assert len(drawn(share)) / len(FLEET) == pytest.approx(share, abs=0.025)


def test_another_version_draws_others():
    hint = PaceHint(0.5)
    first, other = ({d for d in FLEET if takes_part(d, 1, v, 0, hint, None, 0.0)} for v in (1, 2))
    assert len(first & other) / len(FLEET) == pytest.approx(0.25, abs=0.03)


def test_every_lease_without_news_doubles_the_chance():
    assert len(drawn(0.1, attempt=1)) == pytest.approx(2 * len(drawn(0.1)), rel=0.2)
    assert len(drawn(1e-6, attempt=20)) == len(FLEET)


def test_who_is_scored_low_is_drawn_by_exploring_alone():
    assert not drawn(0.5, own=1e-9, explore=0.0)
    explored = len(drawn(0.5, own=1e-9, explore=0.2)) / len(FLEET)
    assert explored == pytest.approx(0.1, abs=0.02)


@LEAN
@given(st.sampled_from(FLEET), st.floats(0.001, 1), st.floats(0.01, 10), st.floats(1, 10))
def test_who_is_scored_higher_is_drawn_whenever_the_lower_is(device, share, low, times):
    hint = PaceHint(share)
    both = [takes_part(device, 1, 1, 0, hint, own, 0.1) for own in (low, low * times)]
    assert both[0] <= both[1]


def test_each_way_to_select_scores_what_it_says():
    def of(select, seconds=0.0, **facts):
        return score(PaceOptions(select=select, seconds=seconds), Facts(**facts))

    assert of("any") == 1.0
    assert of("battery", charge=0.5) == 0.5
    assert of("battery") is None
    assert of("link", unmetered=False) == 0.1
    assert of("link", unmetered=True, left=0.25) == 0.25
    assert of("fair", folded=3) == 0.25
    assert of("utility", examples=10, loss=2.0) == 20.0
    slow = Facts(examples=10, loss=2.0, seconds=10.0)
    assert score(PaceOptions(select="utility", seconds=5.0), slow) == 5.0
