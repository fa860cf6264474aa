"""The fold: bad updates cost nothing, duplicates cost nothing, and commits change nothing."""

import random
from dataclasses import dataclass
from typing import get_args

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import LEAN, generator

from aggregator.fold import Answer, Fold, origin_state
from schemas.codecs import codec_by_name
from schemas.errors import InvariantError
from schemas.log import (
    HEAD_BYTES,
    Arrived,
    DeviceErased,
    DeviceSet,
    Entry,
    EntryId,
    EpochSet,
    Evaluated,
    ModelSet,
    PhaseSet,
    PinSet,
    ReleaseSet,
    SpecSet,
    Tick,
)
from schemas.names import Boot, DeviceId, Seq, shard_of
from schemas.outcomes import FOLDED, Reason, outcome_name
from schemas.params import ParamSpec, TensorSpec, model_digest
from schemas.strategy import StalenessOptions
from schemas.task import (
    EvaluateOptions,
    FinishOptions,
    GateOptions,
    LimitOptions,
    PublishOptions,
    spec_to_json,
)
from schemas.watch import EventName
from schemas.wire import encode_update
from tests.aggregator.world import (
    BOOT,
    DEVICE,
    EPOCH,
    SIZE,
    START_MS,
    Store,
    World,
    arrived,
    digest_of,
    encoded,
    image,
    make_spec,
    newest,
    ramp,
    vector,
    with_gain,
)

ONES = np.ones(SIZE, np.float32)
DENSE = make_spec(
    publish=PublishOptions(every=2), limits=LimitOptions(max_abs=50.0), max_staleness=3
)
SPARSE = make_spec(codec="topk_int8", publish=PublishOptions(every=2), max_staleness=3)
NAMED = (BOOT, 1)
NAMELESS = (Boot(0), 0)


@dataclass(frozen=True)
class Bad:
    """One way in which an update is bad: how to make it, and what is said of it."""

    reason: Reason
    given: dict
    cut: int = 0
    tail: bytes = b""
    sparse: bool = False
    names: bool = True

    def send(self, world, device):
        data = encode_update(world.update(device=device, **self.given)) + self.tail
        data = data[: len(data) - self.cut]
        world.append(arrived(data, device=device))
        return data


def floats(*values):
    vector = np.ones(SIZE, np.float32)
    vector[: len(values)] = values
    return vector.tobytes()


def sparse_payload(*units):
    return b"\1" + np.float32(1).tobytes() + len(units).to_bytes(4, "little") + bytes(units) * 2


BAD = {
    "truncated": Bad(Reason.TRUNCATED, {}, cut=4),
    "payload too long": Bad(Reason.OVERSIZED, {}, tail=bytes(4)),
    "message too large": Bad(Reason.OVERSIZED, {}, tail=bytes(2 * HEAD_BYTES)),
    "unknown codec": Bad(Reason.UNKNOWN_CODEC, {"codec": 77}),
    "wrong codec": Bad(Reason.WRONG_CODEC, {"codec": 1}),
    "wrong spec": Bad(Reason.WRONG_SPEC, {"spec_digest": 1}),
    "wrong epoch": Bad(Reason.WRONG_EPOCH, {"epoch": EPOCH - 1}),
    "wrong base": Bad(Reason.WRONG_BASE, {"base_digest": 1}),
    "unknown base": Bad(Reason.UNKNOWN_BASE, {"base_version": 5}),
    "future base": Bad(Reason.FUTURE_BASE, {"base_version": 7}),
    "too stale": Bad(Reason.TOO_STALE, {"base_version": 0}),
    "nan": Bad(Reason.NOT_FINITE, {"payload": floats(np.nan)}),
    "infinity": Bad(Reason.NOT_FINITE, {"payload": floats(0, -np.inf)}),
    "nan metric": Bad(Reason.NOT_FINITE, {"metrics": {"loss": float("nan")}}),
    "too large a number": Bad(Reason.BAD_NUMBER, {"payload": floats(51)}),
    "merged": Bad(Reason.BAD_NUMBER, {"contributions": 2}),
    "index out of range": Bad(Reason.BAD_INDEX, {"payload": sparse_payload(0, 9)}, sparse=True),
    "repeated index": Bad(Reason.BAD_INDEX, {"payload": sparse_payload(2, 0)}, sparse=True),
    "seq 0": Bad(Reason.BAD_NUMBER, {"seq": 0}, names=False),
}


class Raw(Bad):
    """Bytes that name no update."""

    def send(self, world, device):
        world.append(arrived(self.tail, device=device))
        return self.tail


BAD |= {
    "not MessagePack": Raw(Reason.MALFORMED, {}, tail=b"\xc1" * 9, names=False),
    "empty": Raw(Reason.MALFORMED, {}, names=False),
    "another wire": Raw(Reason.UNKNOWN_WIRE, {}, tail=msgpack.packb([2, 1]), names=False),
    "huge and unreadable": Raw(Reason.OVERSIZED, {}, tail=b"\xc1" * 20_000, names=False),
}


def middle_of_a_task(spec):
    """Version 6: bases 0, 2, 4 and 6 were published, those below 3 are pruned."""
    world = World(spec)
    for _ in range(6):
        world.send(vector(generator(len(world.log))), device="others")
    world.changes()
    return world


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_update_is_counted_kept_answered_and_then_as_if_it_had_never_been(kind):
    bad = BAD[kind]
    spec = SPARSE if bad.sparse else DENSE
    world, without = middle_of_a_task(spec), middle_of_a_task(spec)
    before = image(world.state)

    data = bad.send(world, DEVICE)
    name = outcome_name(bad.reason)
    assert world.state.tally.rejected == {name: 1}
    assert world.state.tally.folded == 6
    changes = world.changes()
    (letter,) = changes.dead
    assert (letter.device, letter.reason, letter.id) == (DEVICE, name, world.log[-1].id)
    assert letter.data == data[:HEAD_BYTES]
    assert letter.detail
    answer = changes.answers[DEVICE]
    assert answer.outcome == bad.reason
    assert (answer.boot, answer.seq) == (NAMED if bad.names else NAMELESS)
    assert {event.event for event in changes.events} - {"joined"} == {"rejected"}
    assert not changes.vectors
    assert newest(changes) is None
    assert image(world.state)["vectors"] == before["vectors"]
    if bad.names:
        assert world.state.windows[(DEVICE, BOOT)].outcome(Seq(1)) == bad.reason

    for each in (world, without):
        each.seqs = {DEVICE: 1}
        each.send(ONES, device=DEVICE)
        each.send(ONES, device="others", seq=7)
    assert world.digest == without.digest
    assert world.state.tally.folded == 8
    assert world.state.bases == without.state.bases


@pytest.mark.parametrize("kind", sorted(k for k, bad in BAD.items() if bad.names))
def test_a_bad_update_that_comes_again_is_a_duplicate_with_its_first_outcome(kind):
    bad = BAD[kind]
    world = middle_of_a_task(SPARSE if bad.sparse else DENSE)
    data = bad.send(world, DEVICE)
    world.changes()
    before = image(world.state)
    world.append(arrived(data))
    changes = world.changes()
    assert changes.answers == {DEVICE: Answer(BOOT, 1, int(bad.reason))}
    assert not changes.dead
    assert not changes.senders
    assert world.state.tally.duplicates == 1
    assert sum(world.state.tally.rejected.values()) == 1
    assert image(world.state)["windows"] == before["windows"]


def with_tensors(spec, params):
    return msgspec.structs.replace(spec, params=params)


def test_a_wrong_shard_is_refused():
    world = middle_of_a_task(DENSE)
    data = encode_update(world.update())
    other = next(digit for digit in "0123456789abcdef" if digit != shard_of(DEVICE))
    world.append(Arrived(DEVICE, other, data, len(data)))
    assert world.state.tally.rejected == {"wrong_shard": 1}


def test_an_oversized_update_of_which_only_the_head_came_is_answered_by_its_number():
    world = middle_of_a_task(DENSE)
    data = encode_update(world.update(payload=bytes(100_000)))
    world.append(arrived(data[:HEAD_BYTES], size=len(data)))
    changes = world.changes()
    assert changes.answers == {DEVICE: Answer(BOOT, 1, int(Reason.OVERSIZED))}
    assert len(changes.dead[0].data) == HEAD_BYTES


def test_ten_thousand_refusals_leave_no_trace_in_the_state_but_one_counter():
    world = middle_of_a_task(DENSE)
    world.append(arrived(b"\xc1"))  # from now on the sender has a record
    before = image(world.state)
    for serial in range(10_000):
        entry = Entry(EntryId(world.now_ms, serial + 1), arrived(b"\xc1"))
        world.fold.apply(entry)
    after = image(world.state)
    assert world.state.tally.rejected == {"malformed": 10_001}
    counters = {"small", "devices"}
    assert {k: v for k, v in after.items() if k not in counters} == {
        k: v for k, v in before.items() if k not in counters
    }
    assert before["devices"].keys() == after["devices"].keys()


def test_bytes_without_a_header_do_not_take_the_place_of_a_better_answer():
    world = World()
    world.changes()
    world.send(ONES)
    world.append(arrived(b"\xff no header"))
    assert world.changes().answers == {DEVICE: Answer(BOOT, 1, FOLDED)}


# -- duplicates --------------------------------------------------------------------------------


def test_a_duplicate_is_counted_answered_with_the_first_outcome_and_never_kept():
    world = World()
    data = world.send(ONES)
    world.changes()
    digest = world.digest
    for _ in range(3):
        world.append(arrived(data))
    changes = world.changes()
    assert world.digest == digest
    assert (world.state.tally.folded, world.state.tally.duplicates) == (1, 3)
    assert changes.answers == {DEVICE: Answer(BOOT, 1, FOLDED)}
    assert not changes.dead
    assert not changes.senders
    assert not changes.vectors


def test_the_same_number_with_other_bytes_is_still_a_duplicate():
    world = World()
    world.send(ONES)
    digest = world.digest
    world.send(ONES * 5, seq=1)
    assert world.digest == digest
    assert world.state.tally.duplicates == 1


def test_a_first_arrival_below_the_highest_number_is_folded():
    world = World()
    for seq in (5, 1, 64, 3, 2, 4):
        world.send(ONES, seq=seq)
    assert world.state.tally.folded == 6
    assert world.state.tally.duplicates == 0
    assert np.array_equal(world.model, ramp() + 6)


def test_the_same_number_of_another_boot_or_device_is_another_update():
    world = World()
    world.send(ONES, seq=1)
    world.send(ONES, seq=1, boot=Boot(8))
    world.send(ONES, seq=1, device="e")
    assert world.state.tally.folded == 3
    assert len(world.state.windows) == 3


def test_a_new_spool_joins_once():
    world = World()
    for device in ("a", "a", "b", "a"):
        world.send(ONES, device=device)
    joined = [event for event in world.changes().events if event.event == "joined"]
    assert [event.device for event in joined] == ["a", "b"]


def test_the_last_update_of_a_device_is_the_one_that_is_answered():
    world = World()
    world.send(ONES)
    world.send(ONES, codec=77)
    assert world.changes().answers == {DEVICE: Answer(BOOT, 2, int(Reason.UNKNOWN_CODEC))}


def test_the_tally_adds_up():
    world = World(make_spec(max_staleness=5))
    for base in (0, 0, 1, 0):
        world.send(ONES, base_version=base)
    tally = world.state.tally
    assert (tally.folded, tally.staleness_sum, tally.staleness_max) == (4, 0 + 1 + 1 + 3, 3)
    assert tally.payload_bytes == 4 * 4 * SIZE


# -- time --------------------------------------------------------------------------------------


def test_a_tick_flushes_only_when_it_is_due():
    world = World(make_spec(buffer_size=4, flush_after_s=2.0))
    world.send(ONES * 4)
    came = world.now_ms
    assert world.fold.next_deadline_ms() == came + 2000
    world.send(ONES * 4)
    assert world.fold.next_deadline_ms() == came + 2000, "the oldest decides"
    world.tick(came + 1999 - world.now_ms)
    assert (world.state.model.version, world.state.model.buffered) == (0, 2)
    world.tick(1)
    assert (world.state.model.version, world.state.model.buffered) == (1, 0)
    assert np.array_equal(world.model, ramp() + 2), "divided by K"
    assert world.fold.next_deadline_ms() is None
    assert newest(world.changes()) is not None


def test_only_a_tick_flushes():
    world = World(make_spec(buffer_size=4, flush_after_s=1.0))
    world.send(ONES)
    world.now_ms += 10_000
    world.send(ONES)
    assert world.state.model.version == 0


def test_a_full_buffer_starts_its_clock_anew():
    world = World(make_spec(buffer_size=2, flush_after_s=1.0))
    for _ in range(3):
        world.now_ms += 400
        world.send(ONES)
    assert world.fold.next_deadline_ms() == world.now_ms + 1000


def test_a_buffer_that_never_flushes_by_time_has_no_deadline():
    world = World(make_spec(buffer_size=2))
    world.send(ONES)
    assert world.fold.next_deadline_ms() is None
    world.tick(10_000_000)
    assert world.state.model.buffered == 1


def test_a_tick_with_nothing_to_do_changes_nothing_but_the_cursor():
    world = World(make_spec(buffer_size=2, flush_after_s=1.0))
    world.changes()
    before = image(world.state)
    world.tick(1_000_000)
    after = image(world.state)
    before["small"]["cursor"] = after["small"]["cursor"]
    assert after == before
    changes = world.changes()
    assert not changes.vectors
    assert not changes.events


def test_every_second_version_is_published_when_asked():
    world = World(make_spec(publish=PublishOptions(every=2), max_staleness=9))
    published = [newest(world.changes()).manifest.version]
    for _ in range(5):
        world.send(ONES)
        publication = newest(world.changes())
        published.append(publication.manifest.version if publication else None)
    assert published == [0, None, 2, None, 4, None]
    assert list(world.state.bases) == [0, 2, 4]


def test_what_waits_is_published_after_so_many_seconds_and_not_before():
    rules = PublishOptions(every=100, seconds=5.0)
    world = World(make_spec(publish=rules, max_staleness=100))
    started = world.now_ms
    assert world.fold.next_deadline_ms() is None, "nothing is new"
    world.send(ONES)
    assert world.fold.next_deadline_ms() == started + 5000
    world.tick(started + 4999 - world.now_ms)
    assert max(world.state.bases) == 0
    world.tick(1)
    assert max(world.state.bases) == 1
    assert world.state.published_ms == started + 5000
    assert world.fold.next_deadline_ms() is None


def test_the_earlier_of_two_deadlines_is_the_next():
    rules = PublishOptions(every=100, seconds=5.0)
    world = World(make_spec(publish=rules, buffer_size=2, flush_after_s=1.0, max_staleness=100))
    started = world.now_ms
    world.send(ONES)
    world.send(ONES)
    world.send(ONES)
    assert world.fold.next_deadline_ms() == world.now_ms + 1000
    world.now_ms = started + 4500
    world.tick(1)
    world.send(ONES)
    assert world.fold.next_deadline_ms() == started + 5000


@LEAN
@given(data=st.data())
def test_a_tick_at_the_deadline_changes_something_and_one_before_it_nothing(data):
    rules = PublishOptions(every=3, seconds=data.draw(st.sampled_from([0.0, 0.7, 3.0])))
    flush = data.draw(st.sampled_from([0.0, 0.5, 2.0]))
    world = World(make_spec(publish=rules, buffer_size=2, flush_after_s=flush))
    for wait in data.draw(st.lists(st.integers(0, 900), max_size=6)):
        world.now_ms += wait
        world.send(ONES)
    deadline = world.fold.next_deadline_ms()
    if deadline is None:
        return
    if deadline - 1 > world.now_ms:
        world.changes()
        world.tick(deadline - 1 - world.now_ms)
        idle = world.changes()
        assert not idle.vectors
        assert newest(idle) is None
    world.tick(max(1, deadline - world.now_ms))
    done = world.changes()
    assert done.vectors or newest(done) is not None


# -- publication and bases ---------------------------------------------------------------------


def test_the_first_specification_publishes_version_0():
    world = World()
    publication = newest(world.changes())
    assert publication.manifest.version == 0
    assert publication.blob == ramp().tobytes()
    assert world.state.bases == {0: digest_of(ramp())}


def test_a_publication_is_the_model_as_it_was_then():
    world = World()
    world.send(ONES)
    publication = newest(world.changes())
    world.send(ONES)
    manifest = publication.manifest
    assert publication.blob == (ramp() + 1).tobytes()
    assert manifest.model_digest == model_digest(DENSE.params.digest, ramp() + 1)
    assert (manifest.blob, manifest.blob_bytes, manifest.version) == ("k3-1", 4 * SIZE, 1)


def test_bases_beyond_max_staleness_are_pruned_and_the_newest_never():
    world = World(make_spec(max_staleness=2))
    for _ in range(5):
        world.send(ONES)
    assert list(world.state.bases) == [3, 4, 5]
    strict = World(make_spec(max_staleness=0))
    for _ in range(3):
        strict.send(ONES)
    assert list(strict.state.bases) == [2, 3]
    assert strict.state.tally.folded == 3


def test_the_weight_of_a_stale_update_is_told_by_the_version_it_was_trained_from():
    world = World(make_spec(staleness=StalenessOptions("polynomial", a=1.0)))
    world.send(ONES)
    world.send(ONES, base_version=0)
    assert np.array_equal(world.model, ramp() + 1.5)


# -- FedAsync ----------------------------------------------------------------------------------


def test_fedasync_keeps_so_many_published_models_and_refuses_an_older_base():
    world = World(make_spec(name="fedasync", alpha=0.5, views=3))
    for _ in range(5):
        world.send(ONES)
    assert list(world.state.views) == list(world.state.bases) == [3, 4, 5]
    assert np.array_equal(world.state.views[5], world.model)
    assert {"view:2", "view:5", "params"} <= world.changes().vectors
    world.send(ONES, base_version=2, base_digest=digest_of(ramp() + 1))
    assert world.state.tally.rejected == {"too_stale": 1}
    world.send(ONES, base_version=3)
    assert world.state.tally.folded == 6


def test_fedasync_mixes_against_the_model_that_the_device_had():
    world = World(make_spec(name="fedasync", alpha=0.5), params=np.zeros(SIZE, np.float32))
    world.send(ONES * 8)
    world.send(ONES * 0, base_version=0)
    assert np.array_equal(world.model, ONES * 2)


def test_a_view_does_not_follow_the_model():
    world = World(make_spec(name="fedasync", alpha=0.5))
    world.send(ONES)
    assert np.array_equal(world.state.views[0], ramp())


# -- another specification ---------------------------------------------------------------------


def test_another_specification_folds_what_waits_and_holds_from_there_on():
    world = World(make_spec(buffer_size=4))
    world.send(ONES * 4)
    world.respecify(make_spec(buffer_size=1, server_lr=2.0))
    assert (world.state.model.version, world.state.model.buffered) == (1, 0)
    assert world.state.buffered_ms == 0
    assert np.array_equal(world.model, ramp() + 1)
    changes = world.changes()
    assert changes.spec == with_gain(world.spec)
    assert newest(changes).manifest.version == 1
    world.send(ONES)
    assert np.array_equal(world.model, ramp() + 3)


def test_another_specification_may_not_rename_or_reshape_the_tensors():
    world = World()
    other = ParamSpec((TensorSpec("w", (3, 2)), TensorSpec("b", (2,))))
    with pytest.raises(InvariantError, match="cannot change its tensors"):
        world.respecify(with_tensors(world.spec, other))


def test_leaving_fedasync_keeps_the_bases_that_devices_train_from():
    world = World(make_spec(name="fedasync"))
    world.send(ONES)
    bases = dict(world.state.bases)
    world.respecify(make_spec())
    world.send(ONES)
    assert bases.items() <= world.state.bases.items()
    assert not world.state.views


def test_the_momentum_survives_another_specification_and_goes_when_it_is_not_asked_for():
    world = World(make_spec(momentum=0.5))
    world.send(ONES)
    world.respecify(make_spec(momentum=0.5, buffer_size=2))
    assert np.array_equal(world.state.model.vectors["momentum"], ONES)
    world.changes()
    world.respecify(make_spec())
    assert "momentum" not in world.state.model.vectors
    assert "momentum" in world.changes().vectors


def test_who_changes_to_fedasync_gets_a_base_that_can_be_mixed_against():
    world = World(make_spec(publish=PublishOptions(every=3)))
    for _ in range(4):
        world.send(ONES)
    world.changes()
    world.respecify(make_spec(name="fedasync", alpha=0.5))
    assert list(world.state.bases) == list(world.state.views) == [4]
    assert newest(world.changes()).manifest.version == 4
    world.send(ONES)
    assert world.state.tally.folded == 5


def test_an_update_that_waited_through_a_change_of_codec_is_taken():
    world = World()
    waiting = encode_update(world.update(ONES))
    world.respecify(make_spec(codec="topk_int8"))
    world.append(arrived(waiting))
    assert world.state.tally.folded == 1
    assert np.array_equal(world.model, ramp() + 1)


def test_a_codec_that_the_task_never_asked_for_is_refused_by_name():
    world = World(make_spec(codec="topk_int8"))
    delta = encoded("float32", ONES)
    world.send(codec=codec_by_name("float32").codec_id, payload=delta)
    assert world.state.tally.rejected == {"wrong_codec": 1}


def test_a_task_never_changes_its_size():
    world = World()
    other = replace_params(ParamSpec((TensorSpec("w", (9,)),)))
    with pytest.raises(InvariantError, match="tensors"):
        world.append(SpecSet(spec_to_json(other)))


def replace_params(params):
    import msgspec

    return msgspec.structs.replace(make_spec(), params=params)


# -- order -------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry_id", [EntryId(START_MS + 1, 0), EntryId(START_MS, 9), EntryId()])
def test_a_log_that_runs_backwards_is_our_bug(entry_id):
    world = World()
    with pytest.raises(InvariantError, match="does not follow"):
        world.fold.apply(Entry(entry_id, Tick()))


def test_an_update_before_the_first_specification_is_our_bug():
    fold = Fold(origin_state(EPOCH, ramp()))
    with pytest.raises(InvariantError, match="before the first specification"):
        fold.apply(Entry(EntryId(1, 0), arrived(b"x")))
    assert fold.next_deadline_ms() is None


def test_a_tick_before_the_first_specification_does_nothing():
    fold = Fold(origin_state(EPOCH, ramp()))
    fold.apply(Entry(EntryId(1, 0), Tick()))
    assert fold.state.cursor == EntryId(1, 0)
    assert newest(fold.take_changes()) is None


def test_the_origin_is_a_copy_of_the_initial_model():
    start = ramp()
    fold = Fold(origin_state(EPOCH, start))
    world = World(params=start)
    world.send(ONES)
    assert np.array_equal(start, ramp())
    assert np.array_equal(fold.state.model.vectors["params"], ramp())


# -- where commits fall ------------------------------------------------------------------------

SPECS = [
    make_spec(buffer_size=3, momentum=0.9, flush_after_s=0.05, staleness=StalenessOptions()),
    make_spec(buffer_size=2, publish=PublishOptions(every=2, seconds=0.2), max_staleness=4),
    make_spec(name="fedasync", alpha=0.6, views=3, staleness=StalenessOptions("hinge", b=1.0)),
    make_spec(name="fedasync", alpha=0.3, views=2, publish=PublishOptions(every=2)),
    make_spec(codec="topk_int8", buffer_size=3, momentum=0.5, examples_unit=10),
    make_spec(checksum=True),
    make_spec(
        evaluate=EvaluateOptions(min_devices=1),
        gate=GateOptions("accuracy", canary=0.5, patience_s=0.1, on_worse="rollback"),
        publish=PublishOptions(keep=3),
    ),
    make_spec(
        name="fedasync",
        views=4,
        gate=GateOptions("loss", "lower", by="server", patience_s=0.3, on_silence="hold"),
        finish=FinishOptions(metric="loss", better="lower", by="server", patience=2),
    ),
]
TAGS = ("north", "a")


def decision(rng, numbers, world):
    """Something that people, or the server's judge, may write into the log."""
    device, version = rng.choice(DEVICES), rng.choice(list(world.state.releases))
    figures = {"accuracy": rng.random(), "loss": rng.random()}
    return rng.choice(
        [
            PhaseSet("running"),
            PhaseSet("running"),
            PhaseSet(rng.choice(("paused", "finished"))),
            DeviceSet(device, banned=rng.random() < 0.3),
            DeviceSet(device, tags=tuple(rng.sample(TAGS, rng.randrange(3)))),
            DeviceErased(device),
            DeviceSet(device, banned=False),
            PinSet(rng.choice(TAGS), rng.choice((version, None))),
            ModelSet(vector(numbers).tobytes(), version),
            Evaluated(version, 10, figures),
            Evaluated(world.state.candidate or version, 10, figures),
            ReleaseSet(world.state.candidate or version, publish=rng.random() < 0.5),
            EpochSet(world.state.epoch + 1),
        ]
    )


DEVICES = [DeviceId(name) for name in "abc"]


def random_world(seed, steps, specs=SPECS):
    """Good, bad, repeated and late updates, ticks and other specifications, all told by `seed`."""
    rng, numbers = random.Random(seed), generator(seed)
    world, sent = World(rng.choice(specs)), []
    for _ in range(steps):
        world.now_ms += rng.randrange(40)
        device = rng.choice(DEVICES)
        dice = rng.random()
        if dice < 0.50:
            base = rng.choice(list(world.state.bases))
            examples = rng.randrange(1, 20)
            metrics = {"@": 5.0, "@accuracy": rng.random(), "@loss": rng.random()}
            given = {"base_version": base, "num_examples": examples, "metrics": metrics}
            if rng.random() < 0.3:  # out of order: a hole stays, and is filled perhaps
                given["seq"] = rng.randrange(1, world.seqs.get(device, 0) + 5)
            data = world.send(vector(numbers), device=device, **given)
            sent.append((device, data))
        elif dice < 0.65:
            bad = rng.choice(list(BAD.values()))
            sent.append((device, bad.send(world, device)))
        elif dice < 0.80 and sent:
            again, data = rng.choice(sent)
            world.append(arrived(data, device=again))
        elif dice < 0.90:
            world.tick(rng.randrange(1, 120))
        elif dice < 0.97:
            world.append(decision(rng, numbers, world))
        else:
            world.respecify(rng.choice(specs))
    return world


EVENTS = set(get_args(EventName))


@settings(LEAN, max_examples=120)
@given(seed=st.integers(0, 2**32), commits=st.lists(st.integers(0, 60), max_size=12))
def test_where_commits_fall_does_not_matter(seed, commits):
    whole = random_world(seed, 60)
    store, fold = Store(), Fold(origin_state(EPOCH, ramp()))
    for place, entry in enumerate(whole.log):
        fold.apply(entry)
        if place in commits:
            store.commit(fold)
            fold = store.load()
            assert fold.next_deadline_ms() == store.load().next_deadline_ms()
    store.commit(fold)
    assert image(fold.state) == image(whole.state)
    assert image(store.load().state) == image(whole.state)
    assert store.load().next_deadline_ms() == whole.fold.next_deadline_ms()


@settings(LEAN, max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_a_crash_that_loses_what_was_not_committed_loses_nothing(seed):
    whole, rng = random_world(seed, 50), random.Random(seed)
    store, fold = Store(), Fold(origin_state(EPOCH, ramp()))
    store.commit(fold)
    store.vectors = {name: v.tobytes() for name, v in fold.state.model.vectors.items()}
    place = 0
    while place < len(whole.log):
        until = min(len(whole.log), place + rng.randrange(1, 9))
        fold.apply_all(whole.log[place:until])
        if rng.random() < 0.5:
            store.commit(fold)
            place = until
        else:
            fold = store.load()  # and once more from the cursor
            assert all(entry.id > fold.state.cursor for entry in whole.log[place:])
    assert image(fold.state) == image(whole.state)


def test_the_random_logs_reach_everything():
    seen, folded, duplicates, events = set(), 0, 0, set()
    for seed in range(100):
        world = random_world(seed, 60)
        tally = world.state.tally
        events |= {event.event for event in world.changes().events}
        seen |= tally.rejected.keys()
        folded += tally.folded
        duplicates += tally.duplicates
    assert folded > 500
    assert duplicates > 100
    assert events == EVENTS
    never = {"unknown_task", "wrong_shard", "outlier"}  # no guard is asked for here
    assert {reason.name.lower() for reason in Reason} - never <= seen
