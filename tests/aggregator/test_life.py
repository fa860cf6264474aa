"""The life of a task, entry by entry: phases, devices, pins, rollback, another epoch."""

import numpy as np
import pytest
from msgspec.structs import replace

from aggregator.fold import BOOTS_MAX
from schemas.errors import InvariantError
from schemas.log import (
    DeviceErased,
    DeviceSet,
    EpochSet,
    ModelSet,
    PhaseSet,
    PinSet,
    SpecSet,
)
from schemas.names import Boot, DeviceId
from schemas.outcomes import FOLDED, Reason
from schemas.params import ParamSpec, TensorSpec, model_digest
from schemas.task import (
    EvaluateOptions,
    FinishOptions,
    PublishOptions,
    spec_from_json,
    spec_to_json,
)
from schemas.window import SeqWindow
from schemas.wire import decode_manifest
from tests.aggregator.world import (
    DEVICE,
    EPOCH,
    SIZE,
    Store,
    World,
    arrived,
    image,
    make_spec,
    newest,
    options,
    ramp,
)

ONES = np.ones(SIZE, np.float32)


def events(world):
    return [event.event for event in world.changes().events]


def outcome(world, device=DEVICE):
    return world.changes().answers[DeviceId(device)].outcome


# -- phases -------------------------------------------------------------------------------------


def test_a_pause_is_told_to_the_fleet_and_what_was_made_is_still_folded():
    world = World()
    world.changes()
    world.append(PhaseSet("paused"))
    changes = world.changes()
    assert spec_from_json(changes.spec).phase == "paused"
    assert [event.event for event in changes.events] == ["paused"]
    world.send(ONES)
    assert world.state.tally.folded == 1
    world.append(PhaseSet("running"))
    assert spec_from_json(world.changes().spec).phase == "running"


def test_a_pause_neither_flushes_the_buffer_nor_changes_the_model():
    world = World(make_spec(buffer_size=3, momentum=0.5))
    world.send(ONES)
    world.append(PhaseSet("paused"))
    assert world.state.model.buffered == 1
    assert np.array_equal(world.model, ramp())


def test_a_phase_survives_an_update_of_the_specification():
    world = World()
    world.append(PhaseSet("paused"))
    world.changes()
    world.respecify(make_spec(server_lr=2.0))
    assert spec_from_json(world.changes().spec).phase == "paused"


def test_the_same_phase_again_is_nothing_new():
    world = World()
    world.append(PhaseSet("paused"))
    world.changes()
    world.append(PhaseSet("paused"))
    changes = world.changes()
    assert changes.spec is None
    assert changes.events == []


def test_a_finished_task_publishes_its_last_model_and_refuses_what_comes():
    world = World(make_spec(publish=PublishOptions(every=10)))
    world.send(ONES)
    world.changes()
    world.append(PhaseSet("finished"))
    world.send(ONES)
    assert outcome(world) == Reason.FINISHED
    assert np.array_equal(world.model, ramp() + 1)
    world.append(PhaseSet("running"))
    world.send(ONES)
    assert outcome(world) == FOLDED


def test_a_task_finishes_at_its_version_and_publishes_it():
    world = World(make_spec(publish=PublishOptions(every=10), finish=FinishOptions(versions=3)))
    for _ in range(5):
        world.send(ONES)
    assert world.state.phase == "finished"
    assert world.state.model.version == 3
    assert newest(world.changes()).manifest.version == 3
    assert world.state.tally.rejected == {"finished": 2}


def test_a_task_finishes_when_its_bytes_are_spent():
    world = World(make_spec(finish=FinishOptions(payload_bytes=2 * 4 * SIZE)))
    for _ in range(3):
        world.send(ONES)
    assert world.state.tally.folded == 2


def test_a_task_finishes_when_its_time_is_over_and_asks_for_the_tick_that_ends_it():
    world = World(make_spec(finish=FinishOptions(seconds=5.0)))
    due = world.fold.next_deadline_ms()
    assert due == world.now_ms + 5000
    world.tick(4999)
    assert world.state.phase == "running"
    world.tick(1)
    assert world.state.phase == "finished"
    assert world.fold.next_deadline_ms() is None


def evaluated(world, accuracy):
    """One update, from the newest base, that says how good that base is."""
    world.send(ONES, metrics={"@": 10.0, "@accuracy": accuracy})


def test_a_task_finishes_when_its_metric_has_not_become_better():
    finish = FinishOptions(metric="accuracy", patience=2, min_delta=0.01)
    world = World(make_spec(evaluate=EvaluateOptions(min_devices=1), finish=finish))
    # the figure of a version is looked at when the next one takes its place
    for accuracy in (0.5, 0.7, 0.705, 0.9, 0.905):
        evaluated(world, accuracy)
        assert world.state.phase == "running"
    evaluated(world, 0.909)
    assert world.state.phase == "finished"
    assert world.state.best == pytest.approx(0.9)


def test_a_task_that_goes_on_is_patient_again():
    world = World()
    world.state.since_best = 5
    world.append(PhaseSet("finished"))
    world.append(PhaseSet("running"))
    assert world.state.since_best == 0


# -- devices ------------------------------------------------------------------------------------


def test_what_a_device_has_done_is_counted():
    world = World()
    data = world.send(ONES)
    world.send(ONES, codec=77)
    world.append(arrived(data))
    record = world.state.devices[DEVICE]
    assert (record.folded, record.rejected, record.duplicates) == (1, 1, 1)
    assert (record.weight, record.staleness_sum, record.base) == (1.0, 0, 0)
    assert record.bytes_up > 2 * len(data)
    assert record.last_ms == world.now_ms > record.first_ms


def test_nothing_is_taken_from_a_banned_device_until_it_is_allowed_again():
    world = World()
    world.send(ONES)
    world.append(DeviceSet(DEVICE, banned=True))
    world.send(ONES)
    assert outcome(world) == Reason.BANNED
    assert world.state.model.version == 1
    assert world.state.devices[DEVICE].rejected == 0, "of a banned one nothing is noted"
    world.append(DeviceSet(DEVICE, banned=False))
    world.send(ONES)
    assert outcome(world) == FOLDED


def test_a_banned_device_leaves_no_window_and_no_dead_letter_but_its_update_is_settled():
    world = World()
    world.append(DeviceSet(DEVICE, banned=True))
    world.changes()
    for seq in (1, 5, 9):
        world.send(ONES, seq=seq)
    changes = world.changes()
    answer = changes.answers[DEVICE]
    assert answer.window == SeqWindow().settle(9, Reason.BANNED)
    assert world.state.windows == {}
    assert changes.dead == []
    assert world.state.tally.rejected == {"banned": 3}


def test_an_erased_device_leaves_nothing_but_its_ban():
    world = World()
    world.send(ONES)
    world.send(ONES, device="other")
    world.append(DeviceSet(DEVICE, tags=("north",)))
    world.changes()
    world.append(DeviceErased(DEVICE))
    changes = world.changes()
    assert {sender[0] for sender in changes.gone_senders} == {DEVICE}
    assert {sender[0] for sender in world.state.windows} == {"other"}
    record = world.state.devices[DEVICE]
    assert record.banned
    assert (record.folded, record.bytes_up, record.tags) == (0, 0, ())
    assert changes.erased == {DEVICE}
    world.send(ONES)
    assert outcome(world) == Reason.BANNED


def test_an_erased_device_that_is_allowed_again_begins_anew():
    world = World()
    world.send(ONES)
    world.append(DeviceErased(DEVICE))
    world.append(DeviceSet(DEVICE, banned=False))
    world.send(ONES)
    assert outcome(world) == FOLDED
    assert [sender[0] for sender in world.state.windows] == [DEVICE]


# -- pins ---------------------------------------------------------------------------------------


def pinned(world):
    return {str(device): version for device, version in world.changes().pins.items()}


def test_those_who_bear_a_tag_are_held_and_let_go():
    world = World()
    for device in ("a", "b", "c"):
        world.send(ONES, device=device)
    for device in ("a", "b"):
        world.append(DeviceSet(DeviceId(device), tags=("north",)))
    world.changes()
    world.append(PinSet("north", 1))
    assert pinned(world) == {"a": 1, "b": 1}
    world.append(DeviceSet(DeviceId("b"), tags=()))
    world.append(DeviceSet(DeviceId("c"), tags=("north",)))
    assert pinned(world) == {"b": None, "c": 1}
    world.append(PinSet("north", None))
    assert pinned(world) == {"a": None, "c": None}


def test_a_device_is_held_by_its_name_before_its_tags():
    world = World()
    world.send(ONES, device="a")
    world.send(ONES, device="a")
    world.append(DeviceSet(DeviceId("a"), tags=("north",)))
    world.append(PinSet("north", 1))
    world.append(PinSet("a", 2))
    assert world.state.pinned == {"a": 2}
    world.append(PinSet("a", None))
    assert world.state.pinned == {"a": 1}


def test_a_device_that_is_held_by_name_is_held_from_its_first_update_on():
    world = World()
    world.append(PinSet("new", 0))
    world.changes()
    world.send(ONES, device="new")
    assert pinned(world) == {"new": 0}


def test_a_version_that_was_swept_cannot_be_pinned_and_a_pinned_one_is_not_swept():
    world = World(make_spec(publish=PublishOptions(keep=2)))
    world.append(PinSet("north", 0))
    for _ in range(6):
        world.send(ONES)
    assert sorted(world.state.releases) == [0, 6]
    world.changes()
    world.append(PinSet("south", 3))
    assert events(world) == ["ignored"]
    assert "south" not in world.state.pins
    world.append(PinSet("north", None))
    world.send(ONES)
    assert sorted(world.state.releases) == [6, 7]


# -- going back ---------------------------------------------------------------------------------


def test_a_rollback_is_a_new_version_with_the_old_parameters():
    world = World(make_spec(buffer_size=1, momentum=0.5))
    world.send(ONES)
    good = world.model.copy()
    for _ in range(3):
        world.send(ONES)
    world.changes()
    world.append(ModelSet(good.tobytes(), 1))
    assert world.state.model.version == 5
    assert np.array_equal(world.model, good)
    assert not world.state.model.vectors["momentum"].any()
    publication = newest(world.changes())
    assert publication.manifest.version == 5
    assert publication.blob == good.tobytes()


def test_what_was_learnt_on_withdrawn_versions_is_refused_and_what_waits_is_dropped():
    world = World(make_spec(buffer_size=2))
    for _ in range(5):
        world.send(ONES)
    assert (world.state.model.version, world.state.model.buffered) == (2, 1)
    world.append(ModelSet(ramp().tobytes(), 1))
    assert sorted(world.state.bases) == [0, 1, 3]
    assert world.state.model.buffered == 0
    world.send(ONES, base_version=2)
    assert outcome(world) == Reason.UNKNOWN_BASE
    world.send(ONES, base_version=1)
    assert outcome(world) == FOLDED
    assert world.state.releases[2].status == "withdrawn"


def test_a_pin_to_a_withdrawn_version_is_void():
    world = World()
    world.send(ONES)
    world.append(DeviceSet(DEVICE, tags=("north",)))
    world.append(PinSet("north", 1))
    world.changes()
    world.append(ModelSet(ramp().tobytes(), 0))
    assert pinned(world) == {"d": None}


def test_a_model_of_another_size_is_our_bug():
    world = World()
    with pytest.raises(InvariantError, match="does not fit"):
        world.append(ModelSet(bytes(4 * (SIZE + 1)), 0))


def test_another_epoch_publishes_the_model_again_and_refuses_the_old_bases():
    world = World()
    world.send(ONES)
    old = world.update()
    world.changes()
    world.append(EpochSet(EPOCH + 4))
    changes = world.changes()
    manifest = newest(changes).manifest
    assert (manifest.epoch, manifest.version) == (EPOCH + 4, 1)
    assert changes.model
    assert changes.spec is not None
    assert world.state.bases.keys() == {1}
    world.send(ONES, epoch=old.epoch, seq=9)
    assert outcome(world) == Reason.WRONG_EPOCH
    world.send(ONES)
    assert outcome(world) == FOLDED


def test_kept_versions_live_on_in_the_new_epoch():
    world = World()
    world.send(ONES)
    world.append(EpochSet(9))
    epochs = {decode_manifest(each.manifest).epoch for each in world.state.releases.values()}
    assert epochs == {9}


# -- tensors of every kind ----------------------------------------------------------------------

KINDS = ParamSpec(
    (
        TensorSpec("stem", (2,), "frozen"),
        TensorSpec("w", (3,)),
        TensorSpec("mean", (2,), "buffer"),
        TensorSpec("head", (1,), "local"),
    )
)


def kinds_spec(**strategy):
    return replace(make_spec(params=KINDS), strategy=options(**strategy))


def test_only_what_travels_is_folded_and_the_rest_is_published_as_it_was():
    world = World(kinds_spec())
    world.send(np.full(5, 2, np.float32))
    publication = newest(world.changes())
    whole = np.frombuffer(publication.blob, "<f4")
    assert (whole - ramp()).tolist() == [0, 0, 2, 2, 2, 2, 2, 0]
    assert publication.manifest.model_digest == model_digest(KINDS.digest, whole)
    assert world.state.model.vectors["params"].size == 5


def test_a_delta_as_long_as_the_whole_model_does_not_fit():
    world = World(kinds_spec())
    world.send(np.ones(SIZE, np.float32), payload=bytes(4 * SIZE))
    assert world.state.tally.folded == 0
    assert outcome(world) == Reason.OVERSIZED


def test_buffers_are_averaged_without_server_rate_and_momentum():
    world = World(kinds_spec(buffer_size=2, server_lr=3.0, momentum=0.5))
    for step in (1.0, 3.0):
        world.send(np.full(5, step, np.float32))
    start = ramp()[2:7]
    assert (world.model - start).tolist() == [6.0, 6.0, 6.0, 2.0, 2.0]
    for _ in range(2):
        world.send(np.zeros(5, np.float32))
    # momentum goes on where it trains: 0.5 * 2 * 3; where it averages nothing is added
    assert (world.model - start).tolist() == [9.0, 9.0, 9.0, 2.0, 2.0]


def test_a_rollback_takes_a_whole_model_and_leaves_frozen_parts_alone():
    world = World(kinds_spec())
    world.send(np.ones(5, np.float32))
    world.changes()
    world.append(ModelSet(np.full(SIZE, 7, np.float32).tobytes(), 0))
    whole = np.frombuffer(newest(world.changes()).blob, "<f4")
    assert whole.tolist() == [0, 1, 7, 7, 7, 7, 7, 7], "frozen and local as at the origin"


def test_a_task_never_changes_the_kind_of_a_tensor():
    world = World()
    tensors = tuple(replace(tensor, kind="buffer") for tensor in world.spec.params.tensors[:1])
    other = ParamSpec((*tensors, *world.spec.params.tensors[1:]))
    with pytest.raises(InvariantError, match="tensors"):
        world.append(SpecSet(spec_to_json(make_spec(params=other))))


# -- found by breaking it -----------------------------------------------------------------------


def test_an_update_that_was_refused_under_a_ban_is_not_folded_when_it_comes_again():
    world = World()
    world.send(ONES)
    world.append(DeviceSet(DEVICE, banned=True))
    again = world.send(ONES)
    world.append(DeviceSet(DEVICE, banned=False))
    world.append(arrived(again))
    assert world.state.tally.folded == 1
    assert world.state.tally.duplicates == 1


def test_one_device_cannot_make_the_server_remember_countless_spools():
    world, store = World(), Store()
    for boot in range(1, BOOTS_MAX + 4):
        world.send(ONES, boot=Boot(boot), seq=1)
        store.commit(world.fold)
        assert image(store.load().state) == image(world.state)
    assert world.state.tally.folded == BOOTS_MAX + 3
    kept = sorted(boot for _, boot in world.state.windows)
    assert kept == list(range(4, BOOTS_MAX + 4)), "the oldest are forgotten"
    assert len(store.windows) == BOOTS_MAX
    world.send(ONES, device="other")
    assert len(world.state.windows) == BOOTS_MAX + 1, "the others keep theirs"


def test_banning_twice_is_told_once():
    world = World()
    world.changes()
    for _ in range(2):
        world.append(DeviceSet(DEVICE, banned=True))
    assert events(world) == ["banned"]


def test_who_comes_back_in_the_same_commit_in_which_it_was_erased_is_not_forgotten():
    world, store = World(), Store()
    world.send(ONES)
    store.commit(world.fold)
    world.append(DeviceErased(DEVICE))
    world.append(DeviceSet(DEVICE, banned=False))
    world.send(ONES)
    store.commit(world.fold)
    assert image(store.load().state) == image(world.state)
    assert len(store.windows) == 1


def test_an_erased_device_is_held_by_its_name_no_more():
    world = World()
    world.send(ONES)
    world.append(PinSet(DEVICE, 0))
    assert pinned(world) == {DEVICE: 0}
    world.append(DeviceErased(DEVICE))
    assert pinned(world) == {DEVICE: None}
    world.append(DeviceSet(DEVICE, banned=False))
    world.send(ONES)
    assert pinned(world) == {}


def test_who_is_held_is_held_in_the_next_epoch_too():
    world = World()
    world.send(ONES)
    world.append(PinSet(DEVICE, 0))
    world.changes()
    world.append(EpochSet(EPOCH + 1))
    assert pinned(world) == {DEVICE: 0}
    assert decode_manifest(world.state.releases[0].manifest).epoch == EPOCH + 1
