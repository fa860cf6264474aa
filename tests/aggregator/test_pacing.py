"""The controller: from the staleness that is seen to the share that is asked for."""

from itertools import pairwise

import msgspec
import pytest

from aggregator.checkpoint import read_small_state, small_state
from aggregator.pacing import Pacing, paced, roused, scored
from schemas.outcomes import FOLDED
from schemas.pace import SCORE, PaceHint, PaceOptions
from tests.aggregator.test_announce import one, said
from tests.aggregator.world import World, make_spec

PACED = PaceOptions(concurrency=40)


def paced_spec(**strategy):
    return msgspec.structs.replace(make_spec(**strategy), pace=PACED)


def settled(fleet: int, begin: Pacing, *, lag: int, size: int = 10, moves: int = 1500):
    """A fleet that obeys: staleness = in flight / K, and what is seen was asked for long ago."""
    spec = paced_spec(buffer_size=size)
    pacing, shares, said_so, folded, stale = begin, [begin.share], [], 0, 0
    for version in range(moves):
        busy = max(1.0, shares[max(0, len(shares) - 1 - lag)] * fleet)
        folded, stale = folded + size, stale + round(busy)
        pacing = paced(pacing, spec, version=version, folded=folded, staleness=stale, late=0)
        shares.append(pacing.share)
        said_so.append(pacing.said)
    changes = sum(a != b for a, b in pairwise(said_so))
    return shares[-1] * fleet, changes


@pytest.mark.parametrize("share", [1.0, 1e-4])
@pytest.mark.parametrize("fleet", [100, 5000])
def test_the_share_comes_to_the_concurrency_that_is_asked_for(fleet, share):
    busy, changes = settled(fleet, Pacing(share=share), lag=2)
    assert busy == pytest.approx(40, rel=0.3)
    assert changes < 40


def test_in_rounds_what_comes_late_is_counted():
    spec = paced_spec(name="fedavg", buffer_size=10)
    after = paced(Pacing(), spec, version=1, folded=10, staleness=0, late=150)
    assert after.share == 0.5
    assert after.said == PaceHint(0.5)


def test_one_liar_does_not_move_the_mean_score_far():
    pacing = scored(Pacing(), 2.0)
    for nonsense in (float("nan"), float("inf"), -1.0, 0.0):
        assert scored(pacing, nonsense) == pacing
    assert scored(pacing, 1e9).score < 2.4


def test_a_buffer_flushed_by_time_wakes_more_devices():
    assert roused(Pacing(share=0.1)).share == 0.2
    spec = paced_spec(buffer_size=3, flush_after_s=60.0)
    world = World(spec)
    world.state.pacing = msgspec.structs.replace(world.state.pacing, share=0.1)
    world.send()
    world.tick(3_600_000)
    assert world.state.pacing.share == 0.2
    assert world.state.pacing.said == PaceHint(0.2)


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
