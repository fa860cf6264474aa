"""Every codec of the table, through the same laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import (
    LEAN,
    OPTIONS,
    VECTORS,
    codec_has_one_length,
    codec_keeps_to_its_budget,
    codec_round_trip,
    codec_survives,
    generator,
    refuses_without_allocating,
)

from schemas.codecs import CODECS, Ask, Codec, CodecOptions, codec_by_id, codec_by_name
from schemas.errors import ConfigError, WireError
from schemas.outcomes import Reason
from schemas.params import MAX_PARAMS

every_codec = pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)

GOLDEN = {
    "float32": "0000803f000000c0000000000000003f",
    "topk_int8": "010402813c0200000000014081",
    "sq": "603d4007ffff7ffffffff9ff40",
    "float16": "003c00c000000038",
    "int8": "823c3f82001f",
    "stc": "c03f020680",
    "sign": "603f40",
    "qsgd": "133f03003523",
    "eden": "305f82c2d940ea38e0010aaf473f0ccc",
    "dropout": "5f82c2d902023d8200",
}
"""The bytes of (1, -2, 0, 0.5) at density 0.5: they never change under one codec id."""


@every_codec
@LEAN
@given(vector=VECTORS, options=OPTIONS)
def test_what_is_encoded_comes_back(codec: Codec, vector, options):
    codec_round_trip(codec, vector, options)


@every_codec
@LEAN
@given(vector=VECTORS, options=OPTIONS)
def test_a_payload_has_exactly_one_length(codec: Codec, vector, options):
    codec_has_one_length(codec, vector[:40], options)


@every_codec
@LEAN
@given(vector=VECTORS, more=st.integers(0, 400))
def test_a_payload_keeps_to_its_budget(codec: Codec, vector, more):
    codec_keeps_to_its_budget(codec, vector, more)


@every_codec
@LEAN
@given(payload=st.binary(max_size=200), size=st.integers(1, 1000))
def test_arbitrary_bytes_give_a_delta_that_fits_or_a_wire_error(codec: Codec, payload, size):
    codec_survives(codec, payload, size)


@every_codec
@LEAN
@given(vector=VECTORS, options=OPTIONS, data=st.data())
def test_a_damaged_payload_gives_a_delta_that_fits_or_a_wire_error(
    codec: Codec, vector, options, data
):
    payload = bytearray(codec.encode(vector, Ask(options), generator()))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    codec_survives(codec, bytes(payload), vector.size)


@every_codec
def test_the_bytes_of_a_known_vector_never_change(codec: Codec):
    vector = np.array([1.0, -2.0, 0.0, 0.5], dtype=np.float32)
    payload = codec.encode(vector, Ask(CodecOptions(density=0.5)), generator())
    assert payload.hex() == GOLDEN[codec.name]


@every_codec
def test_a_vector_of_one_parameter_round_trips(codec: Codec):
    for number in (0.0, -1.5, 3e38):
        codec_round_trip(codec, np.array([number], dtype=np.float32), CodecOptions(density=0.001))


@every_codec
def test_a_short_payload_for_the_largest_model_is_refused_without_allocating(codec: Codec):
    payload = codec.encode(
        np.ones(8, dtype=np.float32), Ask(CodecOptions(density=1.0)), generator()
    )
    refuses_without_allocating(
        lambda: codec.decode(memoryview(payload)[:-1], MAX_PARAMS), Reason.TRUNCATED
    )


@every_codec
def test_the_table_agrees_with_the_codec_on_id_and_name(codec: Codec):
    assert codec_by_id(codec.codec_id) is codec
    assert codec_by_name(codec.name) is codec
    assert 0 <= codec.codec_id <= 127


def test_ids_that_have_travelled_are_never_renumbered():
    assert {codec.name: codec_id for codec_id, codec in CODECS.items()}.items() >= {
        ("float32", 0),
        ("topk_int8", 1),
        ("sq", 2),
        ("float16", 3),
        ("int8", 4),
        ("stc", 5),
        ("sign", 6),
        ("qsgd", 7),
        ("eden", 8),
        ("dropout", 9),
    }


def test_an_unknown_id_is_their_fault_and_an_unknown_name_is_the_users():
    with pytest.raises(WireError) as theirs:
        codec_by_id(99)
    assert theirs.value.reason is Reason.UNKNOWN_CODEC
    with pytest.raises(ConfigError) as users:
        codec_by_name("zip")
    assert users.value.field == "codec.name"
    assert "topk_int8" in users.value.remedy
