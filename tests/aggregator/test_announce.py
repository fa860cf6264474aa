"""What is said for a commit, and in which order."""

import json

import numpy as np
import pytest

from aggregator.announce import Shelf, moves, records
from aggregator.checkpoint import LivingBlob
from aggregator.shelf import GENERATIONS
from schemas.log import DeviceErased, DeviceSet, EpochSet, PinSet, SpecSet
from schemas.messages import Receipt
from schemas.names import Boot, DeviceId
from schemas.outbox import Say, Spread, Sweep
from schemas.outcomes import FOLDED, Reason
from schemas.task import EvaluateOptions, PublishOptions, spec_to_json
from schemas.wire import decode_manifest, decode_receipt
from tests.aggregator.world import BOOT, DEVICE, EPOCH, SIZE, World, arrived, make_spec, with_gain

ONES = np.ones(SIZE, np.float32)


def said(world, living=()):
    """Commit: what lives then, and the records."""
    changes = world.changes()
    moved = moves(world.state, Shelf(living))
    return moved.after.living, list(records(world.state, changes, moved))


def kinds(told):
    return [each.suffix if isinstance(each, Say) else type(each).__name__ for each in told]


def one(told, suffix):
    (found,) = [each for each in told if isinstance(each, Say) and each.suffix == suffix]
    return found


def receipt(told, device=DEVICE):
    say = one(told, f"receipt/{device}")
    assert say.retain
    return decode_receipt(say.payload)


def test_the_specification_comes_first_and_the_blob_before_the_manifest_that_names_it():
    world = World()
    _, told = said(world)
    order = ["spec", "Spread", "model", "candidate", "versions", "metrics", "events"]
    assert kinds(told) == order
    assert told[0] == Say("spec", with_gain(world.spec), retain=True)
    manifest = decode_manifest(one(told, "model").payload)
    assert told[1] == Spread(manifest.blob, manifest.chunk_bytes)
    assert manifest.version == 0


def test_what_is_too_old_is_swept_after_the_manifest_of_what_is_new():
    world, living = World(), ()
    swept = []
    for _ in range(5):
        living, told = said(world, living)
        assert len(living) <= GENERATIONS
        swept += [each for each in told if isinstance(each, Sweep)]
        if swept:
            order = kinds(told)
            assert order.index("Spread") < order.index("model") < order.index("Sweep")
        world.send(ONES)
    assert [each.blob for each in swept] == ["k3-0", "k3-1", "k3-2"]
    assert [each.name for each in living] == ["k3-3", "k3-4"]


def test_two_generations_live():
    assert GENERATIONS == 2
    world = World(make_spec(publish=PublishOptions(chunk_bytes=64)))
    living, _ = said(world)
    world.send(ONES)
    living, told = said(world, living)
    assert living == (LivingBlob("k3-0", 1), LivingBlob("k3-1", 1))
    assert not any(isinstance(each, Sweep) for each in told)


def test_a_blob_that_lives_already_is_not_swept_when_it_is_published_again():
    world = World()
    living, _ = said(world)
    world.tick(1)
    after, told = said(world, living)
    assert after == living
    assert not {"Spread", "Sweep"} & set(kinds(told))


def test_a_commit_without_a_publication_leaves_the_blobs_alone():
    world = World(make_spec(buffer_size=9))
    living, _ = said(world)
    world.send(ONES)
    after, told = said(world, living)
    assert after == living
    assert not {"Spread", "model", "Sweep", "spec"} & set(kinds(told))


def test_a_receipt_tells_all_that_is_settled_of_the_spool():
    world = World()
    for seq in (1, 2, 5):
        world.send(ONES, seq=seq)
    _, told = said(world)
    assert receipt(told) == Receipt(EPOCH, BOOT, 2, 0b100, 5, FOLDED, 3)


def test_a_refused_update_is_settled_and_named():
    world = World()
    world.send(ONES, epoch=EPOCH + 1)
    _, told = said(world)
    assert receipt(told) == Receipt(EPOCH, BOOT, 1, 0, 1, int(Reason.WRONG_EPOCH), 0)


def test_a_duplicate_is_answered_again():
    world = World()
    data = world.send(ONES)
    world.changes()
    world.append(arrived(data))
    _, told = said(world)
    assert receipt(told).outcome == FOLDED
    assert receipt(told).low == 1


def test_bytes_that_name_no_update_are_answered_without_a_number():
    world = World()
    world.append(arrived(b"\xc1"))
    _, told = said(world)
    assert receipt(told) == Receipt(EPOCH, Boot(0), 0, 0, 0, int(Reason.MALFORMED), 0)


def test_every_device_of_a_batch_gets_one_receipt():
    world = World()
    for device in ("a", "b", "a", "c"):
        world.send(ONES, device=device)
    _, told = said(world)
    receipts = [kind for kind in kinds(told) if kind.startswith("receipt/")]
    assert receipts == ["receipt/a", "receipt/b", "receipt/c"]
    assert receipt(told, "a").low == 2


def test_a_device_that_is_allowed_again_has_its_receipt_cleared():
    world = World()
    world.append(DeviceSet(DeviceId(DEVICE), banned=True))
    world.send(ONES)
    world.append(DeviceSet(DeviceId(DEVICE), banned=False))
    _, told = said(world)
    assert one(told, f"receipt/{DEVICE}") == Say(f"receipt/{DEVICE}", b"", retain=True)
    world.append(DeviceSet(DeviceId(DEVICE), banned=False))
    _, told = said(world)
    assert f"receipt/{DEVICE}" not in kinds(told), "it was allowed before"


def test_what_came_after_it_was_allowed_is_answered():
    world = World()
    world.append(DeviceSet(DeviceId(DEVICE), banned=True))
    world.append(DeviceSet(DeviceId(DEVICE), banned=False))
    world.send(ONES)
    _, told = said(world)
    assert receipt(told).outcome == FOLDED


def test_chunks_that_a_held_device_needs_stay_on_the_broker():
    world, living = World(), ()
    world.send(ONES)
    world.append(PinSet(DEVICE, 0))
    for _ in range(4):
        world.send(ONES)
        living, told = said(world, living)
        assert "k3-0" in {blob.name for blob in living}
        assert not [each for each in told if isinstance(each, Sweep) and each.blob == "k3-0"]


def test_of_an_erased_device_receipt_and_state_are_cleared():
    world = World()
    world.send(ONES)
    said(world)
    world.append(DeviceErased(DeviceId(DEVICE)))
    _, told = said(world)
    for suffix in (f"receipt/{DEVICE}", f"state/{DEVICE}"):
        assert one(told, suffix) == Say(suffix, b"", retain=True)


def test_figures_are_told_only_when_enough_devices_have_reported():
    world = World(make_spec(evaluate=EvaluateOptions(min_devices=2)))
    figures = []
    for device, accuracy in (("a", 0.5), ("b", 0.7)):
        metrics = {"@": 10.0, "@accuracy": accuracy}
        world.send(ONES, device=device, base_version=0, metrics=metrics)
        _, told = said(world)
        first = json.loads(one(told, "versions").payload)["versions"][0]
        figures.append((first["devices"], first["metrics"]))
    assert figures[0] == (1, {}), "one device's figures are nobody's business"
    assert figures[1] == (2, {"accuracy": pytest.approx(0.6)})


def test_the_metrics_count_since_the_origin():
    world = World(make_spec(buffer_size=2))
    data = world.send(ONES)
    world.send(ONES)
    world.send(ONES, base_version=0)
    world.send(ONES, codec=77)
    world.append(arrived(data))
    _, told = said(world)
    metrics = one(told, "metrics")
    assert metrics.retain
    assert json.loads(metrics.payload) == {
        "phase": "running",
        "epoch": EPOCH,
        "version": 1,
        "published": 1,
        "candidate": None,
        "buffered": 1,
        "updates_folded": 3,
        "updates_rejected": {"unknown_codec": 1},
        "duplicates_dropped": 1,
        "staleness_mean": 1 / 3,
        "staleness_max": 1,
        "payload_bytes": 3 * 4 * SIZE,
        "devices": 1,
        "spools": 1,
        "at_ms": world.now_ms,
        "busy": "",
        "busy_times": 0,
        "busy_s": 0.0,
        "dropped": 0,
    }


def test_events_are_said_and_not_retained():
    world = World()
    world.send(ONES)
    world.send(ONES, codec=77)
    _, told = said(world)
    events = [each for each in told if isinstance(each, Say) and each.suffix == "events"]
    assert not any(each.retain for each in events)
    names = [json.loads(each.payload)["event"] for each in events]
    assert names == ["published", "joined", "published", "rejected"]
    assert kinds(told)[-4:] == ["events"] * 4


def test_nothing_is_said_of_a_specification_that_did_not_change():
    world = World()
    living, _ = said(world)
    world.append(SpecSet(spec_to_json(make_spec(server_lr=2.0))))
    assert kinds(said(world, living)[1]) == ["spec", "candidate", "metrics"]
    world.tick(5)
    assert kinds(said(world, living)[1]) == ["metrics"]


def test_the_blob_of_another_epoch_is_another_blob():
    world = World()
    living, _ = said(world)
    world.append(EpochSet(4))
    after, told = said(world, living)
    assert [each.name for each in after] == ["k4-0"]
    assert decode_manifest(one(told, "model").payload).epoch == 4
    assert [each.blob for each in told if isinstance(each, Sweep)] == ["k3-0"]


def test_a_version_that_lives_already_is_not_spread_again():
    moved = moves(World().state, Shelf((LivingBlob("k3-0", 1),)))
    assert moved.spread == moved.swept == ()
    assert moved.after.living == (LivingBlob("k3-0", 1),)
