"""The gate: a version waits for a judgement before everybody gets it."""

import numpy as np
import pytest

from aggregator.announce import Shelf, moves, records
from aggregator.gate import with_figure
from schemas.log import EpochSet, Evaluated, ReleaseSet
from schemas.names import DeviceId
from schemas.outbox import Say
from schemas.task import EvaluateOptions, FinishOptions, GateOptions, PublishOptions
from schemas.wire import decode_manifest
from tests.aggregator.world import SIZE, World, make_spec, ramp

ONES = np.ones(SIZE, np.float32)


def gated(min_devices=1, **gate):
    """By devices, half of which are canaries, unless told otherwise."""
    plain = {"metric": "accuracy", "canary": 0.5, "patience_s": 10.0, "margin": 0.05}
    options = GateOptions(**(plain | gate))
    return World(make_spec(gate=options, evaluate=EvaluateOptions(min_devices=min_devices)))


def status(world):
    return {version: release.status for version, release in world.state.releases.items()}


def report(world, version, accuracy, device="d", examples=10.0):
    metrics = {"@": examples, "@accuracy": accuracy}
    world.send(0 * ONES, base_version=version, device=device, metrics=metrics)


def test_the_first_version_passes_the_gate_and_the_second_waits():
    world = gated()
    world.send(ONES)
    assert status(world) == {0: "published", 1: "candidate"}
    assert sorted(world.state.bases) == [0, 1], "canaries train from it"


def test_while_one_version_waits_no_other_is_proposed():
    world = gated()
    for _ in range(4):
        world.send(ONES, base_version=0)
    assert status(world) == {0: "published", 1: "candidate"}


def test_a_version_that_is_good_enough_is_for_everybody():
    world = gated()
    world.send(ONES)
    report(world, 0, 0.80)
    report(world, 1, 0.76, device="e")
    assert status(world)[1] == "published"


def test_a_version_that_is_worse_by_more_than_the_margin_is_held_back():
    world = gated()
    world.send(ONES)
    report(world, 0, 0.80)
    report(world, 1, 0.74, device="e")
    assert status(world)[1] == "held"
    assert world.state.published.version == 0
    assert status(world)[3] == "candidate", "the model as it is now waits next"


def test_lower_may_be_better():
    world = gated(better="lower")
    world.send(ONES)
    report(world, 0, 0.80)
    report(world, 1, 0.86, device="e")
    assert status(world)[1] == "held"


def test_it_takes_enough_devices_on_both_sides():
    world = gated(min_devices=2)
    world.send(ONES)
    report(world, 0, 0.8, device="a")
    report(world, 1, 0.8, device="b")
    report(world, 1, 0.8, device="c")
    assert status(world)[1] == "candidate"
    report(world, 0, 0.8, device="e")
    assert status(world)[1] == "published"


def test_a_mean_is_weighted_by_examples():
    world = gated()
    world.send(ONES)
    report(world, 0, 0.9, examples=1.0)
    report(world, 0, 0.5, examples=9.0, device="e")
    assert world.state.releases[0].judgement.means["accuracy"].value == pytest.approx(0.54)


@pytest.mark.parametrize(("on_silence", "after"), [("publish", "published"), ("hold", "held")])
def test_silence_has_an_end(on_silence, after):
    world = gated(on_silence=on_silence)
    world.send(ONES)
    assert world.fold.next_deadline_ms() == world.now_ms + 10_000
    world.tick(9_999)
    assert status(world)[1] == "candidate"
    world.tick(1)
    assert status(world)[1] == after


def test_the_server_judges_without_canaries():
    world = gated(by="server", canary=0.0)
    world.append(Evaluated(0, 100, {"accuracy": 0.8}))
    world.send(ONES)
    assert list(world.state.bases) == [0], "nobody has it"
    world.append(Evaluated(1, 100, {"accuracy": 0.9}))
    assert status(world)[1] == "published"
    assert list(world.state.bases) == [0, 1]


def test_the_server_is_heard_once_about_a_version():
    world = gated(by="server", canary=0.0)
    world.append(Evaluated(0, 100, {"accuracy": 0.8}))
    world.append(Evaluated(0, 100, {"accuracy": 0.1}))
    assert world.state.releases[0].judgement.server == {"accuracy": 0.8}


def test_a_worse_version_may_take_the_model_back():
    world = gated(by="server", canary=0.0, on_worse="rollback")
    world.append(Evaluated(0, 100, {"accuracy": 0.8}))
    world.send(ONES)
    world.append(Evaluated(1, 100, {"accuracy": 0.2}))
    assert np.array_equal(world.model, ramp())
    assert world.state.model.version == 2
    assert status(world) == {0: "published", 1: "withdrawn", 2: "published"}


def test_people_may_decide_before_the_metric_does():
    world = gated()
    world.send(ONES)
    world.append(ReleaseSet(1, publish=True))
    assert status(world)[1] == "published"
    world.send(ONES)
    world.append(ReleaseSet(2, publish=False))
    assert status(world)[2] == "held"
    world.changes()
    world.append(ReleaseSet(2, publish=True))
    assert [event.event for event in world.changes().events] == ["ignored"]


def test_a_gate_that_is_lifted_lets_the_waiting_version_go():
    world = gated()
    world.send(ONES)
    world.respecify(make_spec())
    assert status(world)[1] == "published"


def said(world):
    moved = moves(world.state, Shelf())
    told = records(world.state, world.changes(), moved)
    return {each.suffix: each.payload for each in told if isinstance(each, Say)}


def test_canaries_hear_of_the_candidate_and_everybody_else_does_not():
    world = gated()
    world.changes()
    world.send(ONES)
    told = said(world)
    assert "model" not in told
    assert decode_manifest(told["candidate"]).version == 1


def test_canaries_are_taken_back_to_what_everybody_has():
    world = gated()
    world.send(ONES)
    world.changes()
    world.append(ReleaseSet(1, publish=False))
    # the next candidate comes with the next version only
    assert decode_manifest(said(world)["candidate"]).version == 0


def test_without_canaries_their_topic_is_cleared_once():
    world = gated()
    world.changes()
    world.respecify(make_spec())
    assert said(world)["candidate"] == b""
    world.send(ONES)
    assert "candidate" not in said(world)


def test_a_device_says_nothing_of_a_version_that_is_gone():
    world = gated()
    device = DeviceId("d")
    del world.state.releases[0]
    report(world, 0, 0.5)
    assert world.state.devices[device].folded == 1


# -- plateau ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "figures", "best", "since"),
    [
        ("higher", [0.5, 0.6, 0.605, 0.61], 0.6, 2),
        ("higher", [0.5, None, 0.6, None], 0.6, 0),
        ("lower", [1.0, 0.5, 0.495, 0.4], 0.4, 0),
    ],
)
def test_better_means_by_more_than_a_little(better, figures, best, since):
    options = FinishOptions(metric="m", better=better, min_delta=0.01)
    state = (None, 0)
    for figure in figures:
        state = with_figure(options, *state, figure)
    assert state == (best, since)


def test_the_last_published_version_is_kept_however_many_were_held_since():
    world = World(
        make_spec(
            gate=GateOptions("accuracy", by="server", margin=0.0),
            publish=PublishOptions(keep=2),
        )
    )
    world.append(Evaluated(0, 10, {"accuracy": 0.9}))
    for version in range(1, 6):
        world.send(ONES, base_version=0)
        world.append(Evaluated(version, 10, {"accuracy": 0.1}))
    assert status(world)[0] == "published"
    assert list(status(world).values()).count("held") >= 1
    assert len(status(world)) <= 3


def test_another_epoch_ends_the_wait_of_a_candidate():
    world = gated()
    world.send(ONES)
    world.send(ONES, base_version=0)
    assert status(world)[1] == "candidate"
    world.append(EpochSet(world.state.epoch + 1))
    assert status(world)[1] == "held"
    assert status(world)[2] == "published", "the model as it is now is for everybody at once"


def test_an_update_from_a_candidate_that_was_held_back_is_mixed_in_all_the_same():
    """FedAsync mixes against the base: the canaries' own is kept while they may still send."""
    options = GateOptions("accuracy", canary=0.5, patience_s=10.0)
    spec = make_spec(
        name="fedasync", views=4, gate=options, evaluate=EvaluateOptions(min_devices=1)
    )
    world = World(spec)
    world.send(ONES)
    report(world, 0, 0.8)
    report(world, 1, 0.1, device="e")
    assert status(world)[1] == "held"
    folded = world.state.tally.folded
    world.send(ONES, base_version=1, device="e")
    assert world.state.tally.folded == folded + 1
