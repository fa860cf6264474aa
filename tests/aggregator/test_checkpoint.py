import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from aggregator.checkpoint import (
    LivingBlob,
    changed_vectors,
    changed_windows,
    read_small_state,
    sender_from_text,
    sender_to_text,
    small_state,
    vector_from_bytes,
    vector_to_bytes,
    window_from_bytes,
    window_to_bytes,
)
from aggregator.fold import FOLD_ID
from schemas.errors import InvariantError
from schemas.names import Boot, DeviceId
from schemas.outcomes import FOLDED
from schemas.window import SPAN, SeqWindow
from tests.aggregator.world import BOOT, DEVICE, SIZE, Store, World, image, make_spec

ONES = np.ones(SIZE, np.float32)
BLOBS = (LivingBlob("k3-0", 1), LivingBlob("k3-1", 2))


def busy_world():
    """Something of everything: a partial buffer, momentum, a refusal, a hole in a window."""
    world = World(make_spec(buffer_size=2, momentum=0.9, flush_after_s=5.0))
    for seq in (1, 2, 5):
        world.send(ONES, seq=seq)
    world.send(ONES, codec=77, device="e")
    return world


def test_a_state_that_went_through_bytes_is_the_same_state():
    for world in (busy_world(), World(make_spec(name="fedasync", views=2))):
        world.send(ONES)
        store = Store()
        store.commit(world.fold)
        assert image(store.load().state) == image(world.state)


def test_only_what_has_changed_is_written():
    world = busy_world()
    world.changes()
    world.send(ONES, codec=77)
    changes = world.changes()
    assert changed_vectors(world.state, changes) == {}
    assert set(changed_windows(world.state, changes.senders)) == {"d/00000007"}
    world.respecify(make_spec(buffer_size=4))
    world.changes()
    world.send(ONES)
    assert set(changed_vectors(world.state, world.changes())) == {"total"}


def test_a_vector_that_is_gone_is_deleted():
    world = busy_world()
    world.changes()
    world.respecify(make_spec(name="fedasync"))
    changed = changed_vectors(world.state, world.changes())
    assert changed["momentum"] is None
    assert changed["total"] is None
    assert changed["view:2"] == changed["params"] == world.model.tobytes()


def test_a_restored_vector_may_be_written_and_shares_nothing_with_its_bytes():
    data = vector_to_bytes(ONES)
    vector = vector_from_bytes(data)
    vector += 1
    assert data == ONES.tobytes()
    assert vector.dtype == np.float32


def test_the_blobs_that_live_are_remembered():
    small = read_small_state(small_state(busy_world().state, BLOBS))
    assert small.living == BLOBS


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe"], ids=repr)
def test_what_is_no_checkpoint_is_refused(data):
    with pytest.raises(InvariantError, match="cannot be read"):
        read_small_state(data)


def test_the_checkpoint_of_another_arithmetic_is_refused():
    tables = msgspec.json.decode(small_state(busy_world().state, ()))
    assert tables["fold_id"] == FOLD_ID
    tables["fold_id"] = "fold-0"
    with pytest.raises(InvariantError, match="fold-0"):
        read_small_state(msgspec.json.encode(tables))


@LEAN
@given(top=st.integers(1, 2**32 - 1), outcomes=st.binary(min_size=1, max_size=SPAN))
def test_a_window_survives_its_bytes(top, outcomes):
    window = SeqWindow(top, outcomes)
    assert window_from_bytes(window_to_bytes(window)) == window


def test_a_window_is_its_top_and_its_outcomes():
    window = SeqWindow().settle(1, FOLDED).settle(3, 29)
    assert window_to_bytes(window) == b"\3\0\0\0" + bytes([29, 0, FOLDED])


@LEAN
@given(device=st.from_regex(r"[a-z0-9_-]{1,48}", fullmatch=True), boot=st.integers(0, 2**32 - 1))
def test_a_sender_survives_its_text(device, boot):
    sender = (DeviceId(device), Boot(boot))
    assert sender_from_text(sender_to_text(sender)) == sender


def test_a_sender_is_device_and_boot_in_hexadecimal():
    assert sender_to_text((DEVICE, BOOT)) == "d/00000007"


def test_a_checkpoint_from_before_there_were_rows_and_numbers_is_read():
    tables = msgspec.json.decode(small_state(busy_world().state, ()))
    assert tables.pop("scalars") == {}
    assert tables.pop("rows") == []
    small = read_small_state(msgspec.json.encode(tables))
    assert (small.scalars, small.rows) == ({}, ())
