import math
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import (
    LEAN,
    MANIFESTS,
    OPTIONS,
    RECEIPTS,
    SHORT_MANIFESTS,
    UPDATES,
    VECTORS,
    generator,
    message_refuses_every_cut,
    message_round_trip,
    message_survives,
    open_update,
    refuses_without_allocating,
)

from schemas.codecs import CODECS, Ask, Codec
from schemas.errors import WireError
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.outcomes import Reason
from schemas.wire import (
    HEADER_MAX,
    decode_manifest,
    decode_receipt,
    decode_update,
    encode_manifest,
    encode_receipt,
    encode_update,
)

DECODERS = (decode_update, decode_manifest, decode_receipt)
every_kind = pytest.mark.parametrize("decode", DECODERS, ids=lambda d: d.__name__[7:])

UPDATE = [1, 2, 3, 4, 5, 6, 7, 0, 8]
FULL_UPDATE = [*UPDATE, 1, 1.0, {"loss": 0.5}]
MANIFEST = [1, 2, 3, b"m" * 32, b"s" * 32, 0, "k2-3", b"b" * 32, 1000, 64]
SHORT = [2, 2, 3, b"m" * 8, 4, 64, 7, 5, 1000, 64, "0123abcd", [99, 150]]
RECEIPT = [1, 2, 3, 4, 5, 6, 1, 7]


def _whole(decode, array: list[object]) -> bytes:
    """The array, and for an update the padding before a payload of no bytes."""
    data: bytes = msgpack.packb(array, use_single_float=True)
    return data + bytes(-len(data) % 4) if decode is decode_update else data


def _refusal(decode, data: bytes) -> Reason:
    with pytest.raises(WireError) as caught:
        decode(data)
    assert caught.value.reason.name.lower() in str(caught.value)
    return caught.value.reason


# -- the laws ----------------------------------------------------------------------------------


@LEAN
@given(update=UPDATES)
def test_an_update_comes_back_as_it_was_written(update):
    message_round_trip(encode_update, decode_update, update)


@LEAN
@given(manifest=MANIFESTS | SHORT_MANIFESTS)
def test_a_manifest_comes_back_as_it_was_written(manifest):
    message_round_trip(encode_manifest, decode_manifest, manifest)


@LEAN
@given(receipt=RECEIPTS)
def test_a_receipt_comes_back_as_it_was_written(receipt):
    message_round_trip(encode_receipt, decode_receipt, receipt)


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
@LEAN
@given(update=UPDATES, vector=VECTORS, options=OPTIONS)
def test_an_update_cut_at_any_byte_is_refused(codec: Codec, update, vector, options):
    """Cut inside the header, the padding or the payload: somebody on the way always sees it."""
    vector = vector[:20]
    whole = ModelUpdate(
        epoch=update.epoch,
        boot=update.boot,
        seq=update.seq,
        base_version=update.base_version,
        base_digest=update.base_digest,
        spec_digest=update.spec_digest,
        codec=codec.codec_id,
        num_examples=update.num_examples,
        payload=codec.encode(vector, Ask(options), generator()),
        contributions=update.contributions,
        weight=update.weight,
        metrics=update.metrics,
    )
    data = encode_update(whole)
    open_update(data, vector.size)
    message_refuses_every_cut(lambda cut: open_update(cut, vector.size), data)


@LEAN
@given(manifest=MANIFESTS | SHORT_MANIFESTS, receipt=RECEIPTS)
def test_a_manifest_or_receipt_cut_at_any_byte_is_refused(manifest, receipt):
    message_refuses_every_cut(decode_manifest, encode_manifest(manifest))
    message_refuses_every_cut(decode_receipt, encode_receipt(receipt))


@every_kind
@LEAN
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_give_a_value_or_a_wire_error(decode, data):
    message_survives(decode, data)
    message_survives(decode, b"\x99\x01" + data)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=70)
    | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=17) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


@every_kind
@LEAN
@given(items=st.lists(PLAIN, max_size=14))
def test_arbitrary_messagepack_gives_a_value_or_a_wire_error(decode, items):
    message_survives(decode, msgpack.packb(items))
    message_survives(decode, msgpack.packb([1, *items]))


@pytest.mark.parametrize(
    ("decode", "array"),
    [
        (decode_update, FULL_UPDATE),
        (decode_manifest, MANIFEST),
        (decode_manifest, SHORT),
        (decode_receipt, RECEIPT),
    ],
    ids=["update", "manifest", "short manifest", "receipt"],
)
@LEAN
@given(data=st.data())
def test_one_foreign_element_gives_a_value_or_a_wire_error(decode, array, data):
    foreign = list(array)
    foreign[data.draw(st.integers(0, len(array) - 1))] = data.draw(PLAIN)
    message_survives(decode, msgpack.packb(foreign))


# -- the short form of a manifest --------------------------------------------------------------


def test_a_manifest_of_a_keyframe_is_written_short_and_cuts_its_digests():
    whole = Manifest(
        2, 3, bytes(range(32)), bytes(range(32)), 64, "k2-3", b"b" * 32, 1000, 64, 7, 5
    )
    short = decode_manifest(encode_manifest(whole))
    assert whole.model_digest.startswith(short.model_digest)
    assert whole.spec_digest.startswith(short.spec_digest)
    assert (len(short.model_digest), len(short.spec_digest), short.blob_digest) == (8, 2, b"")
    assert (short.serial, short.oldest, short.blob, short.chunks) == (7, 5, "k2-3", 16)


def test_a_short_manifest_takes_few_bytes():
    u16, u32, most = 0xFFFF, 0xFFFF_FFFF, 1 << 31
    usual = Manifest(
        1, 300, b"m" * 8, b"ss", 64, "k1-300", b"", 2900, 4096, 290, 226, "", (60, 99, 180, 300)
    )
    highest = Manifest(
        u16, u32, b"m" * 8, b"ss", 64, "", b"", most, 1 << 20, u32, u32, "o" + "a" * 8, (most,) * 7
    )
    assert len(encode_manifest(usual)) == 40
    assert len(encode_manifest(highest)) == 89


@pytest.mark.parametrize(
    ("at", "alien"),
    [
        (0, 1),
        (3, b"m" * 7),
        (3, b"m" * 32),
        (3, "m" * 8),
        (10, "0123abc"),
        (10, "0123ABCD"),
        (10, "0123/bcd"),
        (10, "01234567\n"),
        (10, b"01234567"),
        (11, [0] * 17),
        (11, ["9"]),
        (11, 9),
        (11, {}),
    ],
)
def test_what_a_short_manifest_may_not_hold_is_malformed(at, alien):
    bad = [*SHORT[:at], alien, *SHORT[at + 1 :]]
    assert _refusal(decode_manifest, msgpack.packb(bad)) is Reason.MALFORMED


@pytest.mark.parametrize("size", [-1, (1 << 31) + 1])
def test_a_diff_of_an_impossible_size_is_refused(size):
    bad = [*SHORT[:11], [9, size]]
    assert _refusal(decode_manifest, msgpack.packb(bad)) is Reason.BAD_NUMBER


def test_a_keyframe_has_no_long_manifest():
    bad = [*MANIFEST[:5], 64, *MANIFEST[6:]]
    assert _refusal(decode_manifest, msgpack.packb(bad)) is Reason.MALFORMED


# -- the update's frame ------------------------------------------------------------------------


def _header_bytes(update: ModelUpdate) -> int:
    unpacker = msgpack.Unpacker()
    unpacker.feed(encode_update(update))
    unpacker.unpack()
    return unpacker.tell()


def test_the_header_takes_34_bytes_when_every_field_is_at_its_highest():
    u32 = 0xFFFF_FFFF
    highest = ModelUpdate(0xFFFF, u32, u32, u32, u32, 0xFFFF, 127, u32, b"")
    assert _header_bytes(highest) == HEADER_MAX == 34
    assert _header_bytes(ModelUpdate(0, 0, 1, 0, 0, 0, 0, 1, b"")) == 10


@LEAN
@given(update=UPDATES.map(lambda u: replace(u, metrics={}, contributions=1, weight=1.0)))
def test_the_header_never_takes_more_without_metrics(update):
    assert _header_bytes(update) <= HEADER_MAX


@LEAN
@given(update=UPDATES)
def test_the_payload_starts_at_a_multiple_of_4_and_is_not_copied(update):
    data = encode_update(update)
    payload = decode_update(data).payload
    assert (len(data) - len(payload)) % 4 == 0
    assert payload.obj is data


def test_a_dense_payload_is_aligned_for_float32():
    data = encode_update(ModelUpdate(1, 2, 3, 4, 5, 6, 0, 8, np.ones(3, dtype="<f4").tobytes()))
    values = open_update(data, 3).values
    assert values.flags.aligned
    assert np.shares_memory(values, np.frombuffer(data, dtype=np.uint8))


@pytest.mark.parametrize("at", [10, 11])
def test_padding_that_is_not_zero_is_refused(at):
    data = bytearray(msgpack.packb(UPDATE) + b"\0\0")
    assert len(data) == 12
    decode_update(bytes(data))
    data[at] = 1
    assert _refusal(decode_update, bytes(data)) is Reason.MALFORMED


def test_an_update_without_its_padding_is_truncated():
    assert _refusal(decode_update, msgpack.packb(UPDATE) + b"\0") is Reason.TRUNCATED


def test_what_a_device_need_not_say_is_not_written():
    assert msgpack.unpackb(encode_update(ModelUpdate(2, 3, 4, 5, 6, 7, 0, 8, b""))[:10]) == UPDATE
    merged = encode_update(ModelUpdate(2, 3, 4, 5, 6, 7, 0, 8, b"", contributions=3))
    assert merged[0] == 0x9C


@pytest.mark.parametrize("length", [9, 10, 11, 12])
def test_trailing_fields_may_be_left_out(length):
    data = msgpack.packb(FULL_UPDATE[:length])
    update = decode_update(data + bytes(-len(data) % 4))
    assert update.metrics == ({"loss": 0.5} if length == 12 else {})


def test_numbers_in_a_longer_form_than_needed_are_read():
    data = bytes.fromhex("99 01 cd0002 ce00000003 cf0000000000000004 05 06 07 00 08")
    assert decode_update(data + bytes(-len(data) % 4)).seq == 4


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_passes_the_wire_for_admission_to_see(number):
    data = msgpack.packb([*UPDATE, 1, number, {"loss": number}])
    update = decode_update(data + bytes(-len(data) % 4))
    assert not math.isfinite(update.weight)
    assert not math.isfinite(update.metrics["loss"])


# -- ranges ------------------------------------------------------------------------------------

U16, U32, ONE_UP, CODEC = (0, 0xFFFF), (0, 2**32 - 1), (1, 2**32 - 1), (0, 127)
RANGES = {
    "update": (
        decode_update,
        FULL_UPDATE,
        {1: U16, 2: ONE_UP, 3: ONE_UP, 4: U32, 5: U32, 6: U16, 7: CODEC, 8: ONE_UP, 9: ONE_UP},
    ),
    "manifest": (
        decode_manifest,
        MANIFEST,
        {1: U16, 2: U32, 5: CODEC, 8: (1, 1 << 31), 9: (64, 1 << 20)},
    ),
    "short manifest": (
        decode_manifest,
        SHORT,
        {
            1: U16,
            2: U32,
            4: U16,
            5: (64, 64),
            6: (5, 2**32 - 1),
            7: (0, 7),
            8: (1, 1 << 31),
            9: (64, 1 << 20),
        },
    ),
    "receipt": (
        decode_receipt,
        RECEIPT,
        {1: U16, 2: U32, 3: U32, 4: (0, 2**64 - 1), 5: U32, 6: (0, 255), 7: U32},
    ),
}


@pytest.mark.parametrize(
    ("kind", "at"), [(kind, at) for kind, (_, _, ranges) in RANGES.items() for at in ranges]
)
def test_every_number_is_read_up_to_its_bounds_and_not_beyond(kind, at):
    decode, array, ranges = RANGES[kind]

    def pack(number: object) -> bytes:
        data = msgpack.packb([*array[:at], number, *array[at + 1 :]])
        return data + bytes(-len(data) % 4) if kind == "update" else data

    lowest, highest = ranges[at]
    for number in (lowest, highest):
        decode(pack(number))
    beyond = [lowest - 1] + ([highest + 1] if highest < 2**64 - 1 else [])
    for number in beyond:
        assert _refusal(decode, pack(number)) is Reason.BAD_NUMBER
    for alien in (None, True, "1", b"1", 1.0, [1], {}):
        assert _refusal(decode, pack(alien)) is Reason.MALFORMED


@every_kind
@pytest.mark.parametrize("wire", [0, 3, 127, True, 1.0, 2.0, "1", None])
def test_another_wire_version_is_named_as_such(decode, wire):
    assert _refusal(decode, msgpack.packb([wire, *UPDATE[1:]])) is Reason.UNKNOWN_WIRE


@pytest.mark.parametrize(
    ("decode", "array", "most"),
    [
        (decode_update, FULL_UPDATE, 12),
        (decode_manifest, MANIFEST, 10),
        (decode_manifest, SHORT, 12),
        (decode_receipt, RECEIPT, 8),
    ],
    ids=["update", "manifest", "short manifest", "receipt"],
)
def test_what_a_newer_peer_appends_is_passed_over(decode, array, most):
    assert len(array) == most
    for more in ([0], ["text", b"bytes"], [{"a": 1.0}, 3][: 16 - most]):
        assert decode(_whole(decode, [*array, *more])) == decode(_whole(decode, array))


@pytest.mark.parametrize(
    ("decode", "array"),
    [
        (decode_update, UPDATE),
        (decode_manifest, MANIFEST),
        (decode_manifest, SHORT),
        (decode_receipt, RECEIPT),
    ],
)
def test_an_array_that_is_too_short_or_longer_than_16_is_refused(decode, array):
    assert _refusal(decode, msgpack.packb([*array, *[0] * (17 - len(array))])) is Reason.MALFORMED
    assert _refusal(decode, msgpack.packb(array[:7])) is Reason.MALFORMED
    assert _refusal(decode, msgpack.packb([])) is Reason.MALFORMED


@pytest.mark.parametrize(
    ("decode", "array"),
    [(decode_manifest, MANIFEST), (decode_manifest, SHORT), (decode_receipt, RECEIPT)],
)
def test_a_whole_message_has_nothing_after_its_array(decode, array):
    assert _refusal(decode, msgpack.packb(array) + b"\0") is Reason.MALFORMED


@pytest.mark.parametrize("at", [3, 4, 7])
@pytest.mark.parametrize("digest", [b"d" * 31, b"d" * 33, "d" * 32, "A" * 43 + "=", 0])
def test_a_digest_is_32_bytes_and_never_text(at, digest):
    bad = [*MANIFEST[:at], digest, *MANIFEST[at + 1 :]]
    assert _refusal(decode_manifest, msgpack.packb(bad)) is Reason.MALFORMED


@pytest.mark.parametrize("blob", ["", "a/b", "+", "#", "K1", "x" * 49, "a\n", b"k1", 7])
def test_a_blob_that_could_bend_a_topic_is_refused(blob):
    bad = [*MANIFEST[:6], blob, *MANIFEST[7:]]
    assert _refusal(decode_manifest, msgpack.packb(bad)) is Reason.MALFORMED


@pytest.mark.parametrize(
    "metrics",
    [
        {str(i): 0.0 for i in range(17)},
        {"": 0.0},
        {"x" * 33: 0.0},
        {"é" * 33: 0.0},
        {"a": "b"},
        {"a": None},
        {"a": True},
        {b"a": 0.0},
        {1: 0.0},
        [0.0],
        None,
    ],
)
def test_metrics_are_at_most_16_short_names_with_numbers(metrics):
    assert _refusal(decode_update, msgpack.packb([*UPDATE, 1, 1.0, metrics])) is Reason.MALFORMED


def test_the_most_metrics_that_are_allowed_are_read():
    metrics = {f"{i:032}": float(i) for i in range(16)}
    update = ModelUpdate(2, 3, 4, 5, 6, 7, 0, 8, b"", metrics=metrics)
    assert decode_update(encode_update(update)).metrics == metrics


# -- sizes that the bytes claim but do not have ------------------------------------------------


@every_kind
@pytest.mark.parametrize(
    "claim",
    [
        "dd ffffffff",  # array of 2^32 - 1
        "dc ffff",  # array of 65535
        "99 01 dd ffffffff",  # the same, inside
        "99 01 df ffffffff",  # map
        "99 01 db ffffffff",  # text
        "99 01 c6 ffffffff",  # bytes
        "99 01 c9 ffffffff 00",  # extension
        "99 01 d6 ff 00000000",  # timestamp
        "df ffffffff",
        "db ffffffff",
    ],
)
def test_a_size_that_the_bytes_do_not_have_is_refused_without_allocating(decode, claim):
    refuses_without_allocating(lambda: decode(bytes.fromhex(claim)), Reason.MALFORMED)


@every_kind
@pytest.mark.parametrize("open_bracket", [b"\x91", b"\x81\xa1a", b"\x9f"])
def test_arrays_within_arrays_are_refused_without_a_deep_stack(decode, open_bracket):
    data = open_bracket * 100_000
    refuses_without_allocating(lambda: decode(data), Reason.MALFORMED, most=1 << 20)


def test_a_header_that_does_not_end_within_a_kilobyte_is_refused():
    """No array of allowed elements is so long: it is not read to its end."""
    fat = {f"{i:02}" + "é" * 30: 0.0 for i in range(16)}
    data = msgpack.packb([*UPDATE, 1, 1.0, fat])
    assert len(data) > 1024
    assert _refusal(decode_update, data) is Reason.MALFORMED


def test_a_large_payload_is_not_looked_at():
    data = encode_update(ModelUpdate(2, 3, 4, 5, 6, 7, 0, 8, bytes(1 << 20)))
    assert len(decode_update(data).payload) == 1 << 20


# -- golden bytes ------------------------------------------------------------------------------


def test_the_bytes_of_known_messages_never_change():
    """More of them, with prose beside: tests/vectors and docs/wire.md."""
    update = ModelUpdate(2, 3, 4, 5, 6, 7, 0, 8, b"\xaa", metrics={"a": 0.5})
    header = "9c010203040506070008" + "01ca3f800000" + "81a161ca3f000000"
    assert encode_update(update).hex() == header + "aa"
    assert encode_receipt(Receipt(2, 3, 4, 5, 6, 1, 7)).hex() == "980102030405060107"
    manifest = Manifest(2, 3, b"m" * 32, b"s" * 32, 0, "k2-3", b"b" * 32, 1000, 64)
    expected = "9a010203c420" + "6d" * 32 + "c420" + "73" * 32 + "00a46b322d33c420" + "62" * 32
    assert encode_manifest(manifest).hex() == expected + "cd03e840"
    short = "9c020203c408" + "6d" * 8 + "04400705cd03e840" + "a8" + b"0123abcd".hex() + "9263cc96"
    assert encode_manifest(decode_manifest(msgpack.packb(SHORT))).hex() == short
