import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, NAMES

from schemas.errors import InvariantError
from schemas.log import Arrived, EntryId, Guided, SpecSet, Tick, from_fields, to_fields

ARRIVALS = st.builds(
    lambda device, shard, data, more: Arrived(device, shard, data, len(data) + more),
    NAMES,
    st.sampled_from("0123456789abcdef"),
    st.binary(max_size=80),
    st.just(0) | st.integers(1, 1 << 31),
)
GUIDES = st.builds(
    Guided, st.integers(0, 2**32), st.binary(min_size=1, max_size=20).map(lambda part: 4 * part)
)
BODIES = ARRIVALS | st.builds(SpecSet, st.binary(max_size=80)) | st.builds(Tick) | GUIDES
IDS = st.builds(EntryId, st.integers(0, 2**48), st.integers(0, 2**64 - 1))


@LEAN
@given(body=BODIES)
def test_a_body_survives_the_stream(body):
    assert from_fields(to_fields(body)) == body


def test_the_fields_that_older_logs_hold_are_still_read():
    whole = {b"k": b"up", b"d": b"d", b"s": b"a", b"p": b"xy"}
    assert to_fields(Arrived("d", "a", b"xy", 2)) == whole
    assert to_fields(Arrived("d", "a", b"xy", 9)) == whole | {b"n": b"9"}
    assert to_fields(SpecSet(b"{}")) == {b"k": b"spec", b"p": b"{}"}
    assert to_fields(Tick()) == {b"k": b"tick"}


@pytest.mark.parametrize("fields", [{}, {b"k": b"ban"}, {b"k": b""}])
def test_an_entry_that_this_version_cannot_fold_stops_it(fields):
    with pytest.raises(InvariantError, match="cannot fold"):
        from_fields(fields)


@pytest.mark.parametrize(("version", "delta"), [(b"-1", bytes(4)), (b"0", b""), (b"0", bytes(7))])
def test_a_guide_that_is_no_vector_of_a_version_stops_the_fold(version, delta):
    with pytest.raises(InvariantError, match="a guide of"):
        from_fields({b"k": b"guide", b"v": version, b"p": delta})


@LEAN
@given(one=IDS, other=IDS)
def test_ids_are_ordered_as_redis_orders_them_and_survive_their_text(one, other):
    assert EntryId.parse(str(one)) == EntryId.parse(str(one).encode()) == one
    assert (one < other) == ((one.ms, one.serial) < (other.ms, other.serial))


def test_an_id_without_a_serial_means_serial_0():
    assert EntryId.parse("17") == EntryId(17, 0)
    assert str(EntryId()) == "0-0"
