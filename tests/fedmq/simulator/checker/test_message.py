import json
import struct
from contextlib import suppress
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import FRAMES, LEAN, SHORT_UPDATES, UPDATES

from fedmq.simulator.checker.message import Refused, read_update, without_seal
from fedmq.simulator.checker.payload import read_payload
from schemas.codecs import codec_by_id
from schemas.delta import to_dense
from schemas.errors import WireError
from schemas.outcomes import outcome_name
from schemas.wire import decode_update, encode_update
from tests.aggregator.world import encoded
from tests.fedmq.simulator.checker.logs import seal

VECTORS = Path(__file__).parents[3] / "vectors"
HEADER = [1, 1, 7, 1, 0, 0, 0, 0, 1]


def packed(array, payload=b""):
    data = msgpack.packb(array)
    return data + bytes(-len(data) % 4) + payload


def ours(data):
    """What the checker reads, or the name by which it refuses."""
    try:
        u = read_update(data)
    except Refused as refused:
        return refused.name
    numbers = (u.epoch, u.boot, u.seq, u.base_version, u.base_digest, u.spec_digest, u.codec)
    more = (u.num_examples, u.contributions, repr(u.weight), repr(list(u.metrics)))
    return (*numbers, *more, u.payload, u.partial)


def theirs(data):
    try:
        u = decode_update(data)
    except WireError as exc:
        return outcome_name(exc.reason)
    numbers = (u.epoch, u.boot, u.seq, u.base_version, u.base_digest, u.spec_digest, u.codec)
    more = (u.num_examples, u.contributions, repr(u.weight), repr(list(u.metrics.values())))
    return (*numbers, *more, bytes(u.payload), u.partial)


def our_delta(codec, payload, size):
    try:
        places, values = read_payload(codec, payload, size)
    except Refused as refused:
        return refused.name
    dense = np.zeros(size, np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaN
        dense[places] += values
    return dense.tobytes()


def their_delta(codec, payload, size):
    try:
        with np.errstate(invalid="ignore"):  # signalling NaN
            return to_dense(codec_by_id(codec).decode(memoryview(payload), size), size).tobytes()
    except WireError as exc:
        return outcome_name(exc.reason)


def vectors(name):
    return json.loads((VECTORS / name).read_text())


UPDATE_VECTORS = vectors("update.json") + vectors("update_short.json")


@pytest.mark.parametrize("case", UPDATE_VECTORS, ids=lambda case: case["name"])
def test_the_recorded_updates_are_read_as_they_were_meant(case):
    update = read_update(bytes.fromhex(case["hex"]))
    assert (update.boot, update.seq) == (case["boot"], case["seq"])
    assert update.payload.hex() == case["payload"]
    assert ours(bytes.fromhex(case["hex"])) == theirs(bytes.fromhex(case["hex"]))


@pytest.mark.parametrize("case", vectors("bad_update.json"), ids=lambda case: case["name"])
def test_the_recorded_bad_updates_are_refused_by_their_names(case):
    found = ours(bytes.fromhex(case["hex"]))
    if not isinstance(found, str):
        codec, payload = found[6], found[-2]
        known = codec in {0, 1}
        found = our_delta(codec, payload, case["size"]) if known else "unknown_codec"
    assert found == case["reason"].lower()


SPARSE_VECTORS = [
    pytest.param(codec, case, id=case["name"])
    for codec, name in ((1, "codec_topk_int8.json"), (2, "codec_sq.json"), (5, "codec_stc.json"))
    for case in vectors(name)
]


@pytest.mark.parametrize(("codec", "case"), SPARSE_VECTORS)
def test_the_recorded_payloads_are_read_as_they_were_meant(codec, case):
    payload = bytes.fromhex(case["hex"])
    places, values = read_payload(codec, payload, case["size"])
    assert places.tolist() == case["indices"]
    assert values.tolist() == case["values"]


@LEAN
@given(UPDATES | SHORT_UPDATES | FRAMES, st.data())
def test_an_update_is_read_as_the_product_reads_it_whole_cut_or_altered(update, data):
    message = encode_update(update)
    assert ours(message) == theirs(message)
    cut = message[: data.draw(st.integers(0, len(message)))]
    assert ours(cut) == theirs(cut)
    altered = bytearray(message)
    altered[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    assert ours(bytes(altered)) == theirs(bytes(altered))


@LEAN
@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused_as_the_product_does(data):
    assert ours(data) == theirs(data)
    for form in (b"\x99\x01", b"\x02", b"\x03"):
        assert ours(form + data) == theirs(form + data)


WHATEVER = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**34) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@LEAN
@given(st.integers(0, 11), WHATEVER, st.lists(WHATEVER, max_size=5))
def test_an_array_with_anything_in_any_place_is_read_as_the_product_reads_it(place, value, more):
    array = [*HEADER, 1, 1.0, {"a": 1.0}]
    array[place] = value
    for message in (packed(array), packed(array + more), packed(array[: place + 1])):
        assert ours(message) == theirs(message)


@LEAN
@given(st.integers(1, 300), st.sampled_from([1, 2]), st.data())
def test_a_topk_payload_is_read_as_the_product_reads_it(size, width, data):
    k = data.draw(st.integers(0, 12))
    gap = st.integers(0, 40) | st.just(256**width - 1) | st.integers(0, 256**width - 1)
    gaps = data.draw(st.lists(gap, min_size=k, max_size=k + 2))
    scale = data.draw(st.sampled_from([0.0, 0.25, 1e30, -1.0, float("inf")]))
    head = struct.pack("<BfI", data.draw(st.sampled_from([width, width, 3])), scale, k)
    units = b"".join(unit.to_bytes(width, "little") for unit in gaps)
    payload = head + units + data.draw(st.binary(min_size=k, max_size=k))
    assert our_delta(1, payload, size) == their_delta(1, payload, size)
    assert our_delta(1, payload[:-1], size) == their_delta(1, payload[:-1], size)


@pytest.mark.parametrize("codec", [2, 5])
@LEAN
@given(st.integers(1, 60), st.integers(0, 9), st.binary(min_size=1, max_size=10), st.data())
def test_a_payload_of_gaps_is_read_as_the_product_reads_it(codec, size, k, body, data):
    scale = data.draw(
        st.sampled_from([b"\0\0", b"\x80\x3f", b"\x7f\x7f", b"\x80\xbf", b"\xc0\x7f"])
    )
    count = data.draw(st.sampled_from([bytes([k]), bytes([k]), bytes([k | 0x80, 0]), b"\xff" * 5]))
    few = bytes([body[0] % 64]) + body[1:]  # a Rice parameter of 0 to 7
    payload = scale + count + few
    for cut in range(len(payload) + 1):
        assert our_delta(codec, payload[:cut], size) == their_delta(codec, payload[:cut], size)
    honest = bytearray(encoded(codec_by_id(codec).name, np.linspace(-1, 1, size, dtype=np.float32)))
    honest[data.draw(st.integers(0, len(honest) - 1))] ^= data.draw(st.integers(0, 255))
    assert our_delta(codec, bytes(honest), size) == their_delta(codec, bytes(honest), size)


@pytest.mark.parametrize("codec", [0, 3, 4])
@LEAN
@given(st.integers(1, 4), st.binary(max_size=20))
def test_a_dense_payload_has_one_length(codec, size, payload):
    assert our_delta(codec, payload, size) == their_delta(codec, payload, size)


DENSE_VECTORS = [
    pytest.param(codec, case, id=f"{name}: {case['name']}")
    for codec, name in ((3, "float16"), (4, "int8"))
    for case in vectors(f"codec_{name}.json")
]


@pytest.mark.parametrize(("codec", "case"), DENSE_VECTORS)
def test_the_recorded_dense_payloads_are_read_as_they_were_meant(codec, case):
    values = np.zeros(case["size"], np.float32)
    for place, value in case.get("entries") or enumerate(case["values"]):
        values[place] = value
    assert our_delta(codec, bytes.fromhex(case["hex"]), case["size"]) == values.tobytes()


@given(st.binary(min_size=1, max_size=40), st.integers(0, 7))
@LEAN
def test_a_seal_is_taken_off_when_it_is_right_and_only_then(message, bit):
    sealed = seal(message, "pump-7")
    assert without_seal("pump-7", sealed) == message
    assert without_seal("pump-8", sealed) is None
    for place in range(len(sealed)):
        altered = bytearray(sealed)
        altered[place] ^= 1 << bit
        assert without_seal("pump-7", bytes(altered)) is None


@pytest.mark.parametrize("size", range(5))
def test_a_message_without_a_body_has_no_seal(size):
    with suppress(IndexError):
        assert without_seal("d", seal(b"", "d")[:size]) is None
