"""The controller: from the staleness that is seen to the share that is asked for."""

from bisect import bisect_right
from itertools import pairwise
from operator import itemgetter

import msgspec
import pytest

from aggregator.checkpoint import read_small_state, small_state
from aggregator.pacing import Pacing, noted, paced, scored
from schemas.outcomes import FOLDED
from schemas.pace import SCORE, PaceHint, PaceOptions
from tests.aggregator.test_announce import one, said
from tests.aggregator.world import World, make_spec

PACED = PaceOptions(concurrency=40)


def paced_spec(**strategy):
    return msgspec.structs.replace(make_spec(**strategy), pace=PACED)


def settled(
    fleet: int, begin: Pacing, *, lag: int, size: int = 10, moves: int = 800, every=1, old=0
):
    """A fleet that obeys: so many are under way, and each took its base when it began."""
    spec = paced_spec(buffer_size=size)
    pacing, shares, said_so, folded = begin, [begin.share], [], 0
    pacing = paced(pacing, spec, version=0, folded=0, late=0)
    published = [(0, 0)]
    for version in range(1, moves):
        busy = max(1, round(shares[max(0, len(shares) - 1 - lag)] * fleet))
        for place in range(size):
            folded += 1
            found = bisect_right(published, max(0, folded - busy), key=itemgetter(1))
            base = 0 if place < old else published[found - 1][0]
            pacing = noted(pacing, spec, base=base, folded=folded)
        if version % every == 0:
            published.append((version, folded))
            pacing = paced(pacing, spec, version=version, folded=folded, late=0)
            shares.append(pacing.share)
            said_so.append(pacing.said)
    changes = sum(a != b for a, b in pairwise(said_so))
    return shares[-1] * fleet, changes


@pytest.mark.parametrize("share", [1.0, 1e-4])
@pytest.mark.parametrize("fleet", [100, 5000])
def test_the_share_comes_to_the_concurrency_that_is_asked_for(fleet, share):
    busy, changes = settled(fleet, Pacing(share=share), lag=2)
    assert busy == pytest.approx(40, rel=0.35)
    assert changes < 40


@pytest.mark.parametrize(("size", "every"), [(1, 1), (1, 10), (10, 5)])
def test_it_does_so_whatever_makes_a_version_and_however_rarely_one_is_published(size, every):
    busy, _ = settled(200, Pacing(), lag=2, size=size, every=every, moves=4000 // size)
    assert busy == pytest.approx(40, rel=0.35)


def test_a_fleet_smaller_than_what_is_wanted_is_never_turned_down():
    busy, _ = settled(5, Pacing(), lag=2, size=1, moves=800)
    assert busy == 5


def test_a_fifth_of_all_updates_from_an_old_base_does_not_silence_the_others():
    busy, _ = settled(200, Pacing(), lag=2, old=2)
    assert busy > 8


def test_in_rounds_what_comes_late_is_counted():
    spec = paced_spec(name="fedavg", buffer_size=10)
    pacing = paced(Pacing(), spec, version=0, folded=1000, late=500)
    assert pacing.share == 1.0
    for folded in range(1001, 1011):
        pacing = noted(pacing, spec, base=0, folded=folded)
    after = paced(pacing, spec, version=1, folded=1010, late=650)
    assert after.share == 0.5
    assert after.said == PaceHint(0.5)


def test_one_liar_does_not_move_the_mean_score_far():
    pacing = scored(Pacing(), 2.0)
    for nonsense in (float("nan"), float("inf"), -1.0, 0.0):
        assert scored(pacing, nonsense) == pacing
    assert scored(pacing, 1e9).score < 2.4
    looked = msgspec.structs.replace(pacing, anchor=2.0)
    for _ in range(100):
        looked = scored(looked, 1e9)
    assert looked.score == 4.0


def test_the_hint_is_retained_while_it_is_asked_for_and_cleared_after_that():
    world = World(paced_spec())
    _, told = said(world)
    assert msgspec.json.decode(one(told, "pace").payload, type=PaceHint) == PaceHint(1.0)
    world.respecify(make_spec())
    _, told = said(world)
    assert one(told, "pace").payload == b""
    assert one(told, "pace").retain


def test_without_concurrency_nothing_is_said():
    _, told = said(World())
    assert not [each for each in told if getattr(each, "suffix", "") == "pace"]


def test_who_sends_without_being_drawn_is_folded_and_its_score_heard():
    world = World(paced_spec())
    world.state.pacing = msgspec.structs.replace(world.state.pacing, share=1e-6)
    world.send(metrics={SCORE: 3.0})
    assert world.state.tally.folded == 1
    assert world.state.pacing.score == 3.0
    assert FOLDED in {a.outcome for a in world.fold.changes.answers.values()}


def test_a_checkpoint_remembers_the_pace_and_an_old_one_reads():
    world = World(paced_spec())
    small = read_small_state(small_state(world.state, ()))
    assert small.pacing == world.state.pacing != Pacing()
    tables = msgspec.json.decode(small_state(world.state, ()))
    del tables["pacing"]
    assert read_small_state(msgspec.json.encode(tables)).pacing == Pacing()
