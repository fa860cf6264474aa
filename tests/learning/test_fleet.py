import numpy as np
import pytest

from benchmarks.learning.datasets import digits_world
from benchmarks.learning.downlink import Walked
from benchmarks.learning.fleet import EVERY, Outcome, Setting, Way, run
from benchmarks.learning.models import Steps, mlp
from benchmarks.learning.study import paired
from benchmarks.learning.timeline import Faults, drawn

TINY = Setting(mlp(64, (16,), 10), Steps(0.2, epochs=1), 100)


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def world():
    return digits_world(generator(), devices=20)


def test_the_same_seed_is_the_same_run_and_another_one_is_not(world):
    way = Way("sq", 39)
    first, again, other = (run(TINY, way, world, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.scores != other.scores


def test_every_upload_is_sent_and_none_is_longer_than_its_budget(world):
    outcome = run(TINY, Way("stc", 50), world, 1, faults=Faults("lost", 0.5))
    assert len(outcome.up) == TINY.uploads
    assert len(outcome.scores) == TINY.uploads // EVERY
    assert 0 < max(outcome.up) <= 50


def test_on_the_lattice_a_fleet_reads_less_than_whole_models(world):
    downlink = Walked(TINY.network.spec)
    walked = run(TINY, Way(), world, 1, downlink=downlink)
    plain = run(TINY, Way(), world, 1)
    assert 0 < walked.down[-1] < plain.down[-1] / 4
    assert downlink.merged(4, 12) <= downlink.laddered(4, 12) <= downlink.chained(4, 12)


def test_a_timeline_sends_in_order_and_each_upload_begins_before_it_is_sent():
    timeline = drawn(7, 200, Faults(), generator())
    at = {(event.kind, event.number): i for i, event in enumerate(timeline.events)}
    sent = [event.number for event in timeline.events if event.kind == "send"]
    assert sent == list(range(200))
    assert all(at["begin", n] < at["send", n] < at["arrive", n] for n in range(200))
    begun = {}
    for event in timeline.events:  # a device does one thing after another
        if event.kind == "begin":
            assert event.device not in begun
            begun[event.device] = event.number
        elif event.kind == "send":
            assert begun.pop(event.device) == event.number


@pytest.mark.parametrize(
    ("kind", "arrivals"), [("lost", 300), ("doubled", 500), ("late", 400), ("stale", 400)]
)
def test_faults_strike_the_share_that_was_asked(kind, arrivals):
    timeline = drawn(20, 400, Faults(kind, 0.25), generator())
    came = sum(event.kind == "arrive" for event in timeline.events)
    assert abs(came - arrivals) <= 40
    assert bool(timeline.lost) == (kind == "lost")


def test_faults_change_nothing_else():
    plain, faulty = (drawn(20, 50, faults, generator()) for faults in (Faults(), Faults("lost", 1)))
    kept = [event for event in plain.events if event.kind != "arrive"]
    assert kept == list(faulty.events)


def test_bytes_are_counted_until_three_evaluations_are_good_enough():
    scores = (90.0, 96.0, 95.0, 95.0, 99.0)
    outcome = Outcome(scores, (10,) * 125, (0, 0, 0, 7, 9), 0.0)
    assert outcome.bytes_to(95.0) == 4 * EVERY * 10
    assert outcome.bytes_to(95.0, both=True) == 4 * EVERY * 10 + 7
    assert outcome.bytes_to(99.5) == float("inf")
    assert outcome.bytes_to(93.7, below=True) == 3 * EVERY * 10


def test_a_bound_of_paired_differences_is_students():
    found = paired([2.0, 3.0, 4.0], [1.0, 1.0, 1.0])
    assert found.mean == 2.0
    assert found.upper == pytest.approx(2.0 + 2.920 / 3**0.5)
