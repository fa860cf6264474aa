"""The short headers of updates: what they tell, in how many bytes, and what is refused."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import (
    FRAMES,
    LEAN,
    SHORT_UPDATES,
    message_refuses_every_cut,
    message_round_trip,
    message_survives,
    refuses_without_allocating,
)

from schemas.errors import InvariantError, WireError
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq
from schemas.outcomes import Reason
from schemas.seal import sealed, unsealed
from schemas.short import AIR_BYTES, carried, over_the_air
from schemas.uplink import SHORT_HEADER_MAX
from schemas.wire import HEADER_MAX, decode_update, encode_update, update_header

U32_MAX = 0xFFFF_FFFF
LOWEST = ModelUpdate(Epoch(0), Boot(1), Seq(1), ModelVersion(0), 0, None, 0, 1, b"")
HIGHEST = replace(
    LOWEST,
    epoch=0xFFFF,
    boot=U32_MAX,
    seq=U32_MAX,
    base_version=U32_MAX,
    base_digest=U32_MAX,
    codec=127,
    num_examples=U32_MAX,
)
TYPICAL = replace(LOWEST, epoch=1, boot=305419896, seq=20, base_version=300, num_examples=320)
BOTH_FORMS = pytest.mark.parametrize("updates", [SHORT_UPDATES, FRAMES], ids=["short", "frame"])


# -- the laws ----------------------------------------------------------------------------------


@BOTH_FORMS
@LEAN
@given(data=st.data())
def test_an_update_comes_back_as_it_was_written(updates, data):
    update = data.draw(updates)
    message_round_trip(encode_update, decode_update, update)
    assert update_header(update) + update.payload == encode_update(update)


@BOTH_FORMS
@LEAN
@given(data=st.data())
def test_a_header_that_was_cut_is_refused_and_names_why(updates, data):
    header = update_header(data.draw(updates))
    message_refuses_every_cut(decode_update, header)
    for cut in range(1, len(header)):
        with pytest.raises(WireError) as caught:
            decode_update(header[:cut])
        assert caught.value.reason is Reason.TRUNCATED


@BOTH_FORMS
@LEAN
@given(data=st.data())
def test_whatever_one_byte_becomes_there_is_a_value_or_a_wire_error(updates, data):
    message = bytearray(encode_update(data.draw(updates)))
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    message_survives(decode_update, bytes(message))


@LEAN
@given(form=st.sampled_from([b"\x02", b"\x03"]), data=st.binary(max_size=40))
def test_arbitrary_bytes_give_an_update_with_one_spelling_or_a_wire_error(form, data):
    try:
        update = decode_update(form + data)
    except WireError:
        return
    assert encode_update(update) == form + data


@BOTH_FORMS
@LEAN
@given(data=st.data())
def test_a_sealed_one_opens(updates, data):
    message, device = encode_update(data.draw(updates)), DeviceId("pump-7")
    assert unsealed(sealed(message, device), device) == message


def test_a_large_payload_is_not_copied_nor_looked_at():
    data = encode_update(replace(TYPICAL, payload=bytes(1 << 20)))
    assert decode_update(data).payload.obj is data


# -- how many bytes ----------------------------------------------------------------------------


def test_a_short_header_takes_14_to_28_bytes_and_typically_16():
    assert len(update_header(LOWEST)) == 14
    assert len(update_header(HIGHEST)) == 28 == SHORT_HEADER_MAX < HEADER_MAX
    assert len(update_header(TYPICAL)) == 16
    assert len(update_header(replace(TYPICAL, base_digest=1 << 30, spec_digest=2787))) == 24


@LEAN
@given(update=SHORT_UPDATES)
def test_a_short_header_is_never_longer_than_the_long_one(update):
    assert len(update_header(update)) <= 28
    long = replace(update, spec_digest=0xFFFF)
    if update.base_digest > 0xFFFF:
        assert len(update_header(update)) < len(update_header(long))


@LEAN
@given(update=SHORT_UPDATES)
def test_a_frame_adds_4_bytes_over_the_air_and_the_adapter_6_to_10(update):
    frame = over_the_air(update)
    assert len(frame) == AIR_BYTES + len(update.payload)
    message = carried(update.boot, update.seq, frame)
    assert 6 <= len(message) - len(frame) <= 10
    read = decode_update(message)
    assert (read.boot, read.seq, read.codec) == (update.boot, update.seq, update.codec)
    assert (read.epoch, read.base_version) == (update.epoch % 16, update.base_version % (1 << 16))
    assert (read.payload, read.partial) == (update.payload, True)
    if update.num_examples <= 1 << 15:
        assert read.num_examples / 2 < update.num_examples <= read.num_examples
    else:
        assert read.num_examples == 1 << 15


# -- what is refused ---------------------------------------------------------------------------


def short(**numbers: bytes) -> bytes:
    """A good short header, but for what is given."""
    good = {
        "epoch": b"\x01",
        "boot": b"\0\0\0\x07",
        "seq": b"\x01",
        "base_version": b"\x09",
        "base_digest": b"\0\0\0\x63",
        "codec": b"\x00",
        "num_examples": b"\x0c",
    }
    return b"\x02" + b"".join((good | numbers).values())


def test_the_parts_of_a_short_header_stand_in_their_order():
    assert decode_update(short()) == ModelUpdate(1, 7, 1, 9, 99, None, 0, 12, b"")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("epoch", b"\x80\x80\x04"),
        ("boot", bytes(4)),
        ("seq", b"\0"),
        ("seq", b"\x80\x80\x80\x80\x10"),
        ("base_version", b"\x80\x80\x80\x80\x10"),
        ("codec", b"\x80"),
        ("num_examples", b"\0"),
        ("num_examples", b"\xff\xff\xff\xff\x7f"),
    ],
)
def test_a_number_out_of_its_range_is_refused(name, number):
    with pytest.raises(WireError) as caught:
        decode_update(short(**{name: number}))
    assert caught.value.reason is Reason.BAD_NUMBER
    assert name in str(caught.value)


@pytest.mark.parametrize("number", [b"\x81\x00", b"\x80\x80\x80\x80\x80\x01", b"\xff" * 100_000])
def test_a_varint_of_more_bytes_than_it_needs_is_refused(number):
    data = short(seq=number)
    refuses_without_allocating(lambda: decode_update(data), Reason.MALFORMED)


@pytest.mark.parametrize(
    "told",
    [{"metrics": {"loss": 0.5}}, {"contributions": 2}, {"weight": 0.5}, {"base_digest": None}],
    ids=str,
)
def test_what_a_short_header_cannot_tell_is_our_own_mistake(told):
    with pytest.raises(InvariantError):
        encode_update(replace(TYPICAL, **told))
    if "base_digest" not in told:
        with pytest.raises(InvariantError):
            over_the_air(replace(TYPICAL, **told))


# -- golden bytes ------------------------------------------------------------------------------


def test_the_bytes_of_known_messages_never_change():
    update = replace(TYPICAL, codec=2, base_digest=0x53291FC1, payload=b"\xaa\xbb")
    assert encode_update(update).hex() == "02011234567814ac0253291fc102c002aabb"
    frame = over_the_air(replace(update, epoch=0x23, base_version=0x5_012C))
    assert frame.hex() == "02012c39aabb"
    assert carried(Boot(0x12345678), Seq(300), frame).hex() == "0312345678ac0202012c39aabb"
