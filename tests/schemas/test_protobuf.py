import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from schemas.protobuf import BYTES, FIXED32, FIXED64, VARINT, fields, head, number, varint

U64 = st.integers(0, (1 << 64) - 1)
NUMBERS = st.integers(1, (1 << 29) - 1)


def read(data):
    return [
        (field, kind, value if isinstance(value, int) else bytes(value))
        for field, kind, value in fields(memoryview(data))
    ]


@LEAN
@given(field=NUMBERS, value=U64, text=st.binary(max_size=300))
def test_what_is_written_is_read(field, value, text):
    data = number(field, value) + head(field, len(text)) + text
    assert read(data) == [(field, VARINT, value), (field, BYTES, text)]


def test_the_example_of_the_encoding_specification_is_read():
    assert read(bytes.fromhex("089601")) == [(1, VARINT, 150)]
    assert read(bytes.fromhex("120774657374696e67")) == [(2, BYTES, b"testing")]
    assert varint(150).hex() == "9601"


def test_numbers_of_fixed_size_are_told_as_their_bytes():
    assert read(b"\x0d1234" + b"\x1112345678") == [(1, FIXED32, b"1234"), (2, FIXED64, b"12345678")]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x08", "end within a count"),
        (b"\x08\x80", "end within a count"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x12\x05abcd", "end within field 2"),
        (b"\x12\xff\xff\xff\xff\x7fabcd", "end within field 2"),
        (b"\x0d123", "end within field 1"),
        (b"\x00\x01", "key 0 cannot be"),
        (b"\x0b", "of kind 3"),
        (varint(1 << 32 | 0x12) + b"\x01a", "cannot be"),
        (b"\x88\x00\x01", "8 is written in 2 bytes"),
        (b"\x12\x81\x00a", "1 is written in 2 bytes"),
        (b"\x12\x80\x80\x00", "0 is written in 3 bytes"),
    ],
)
def test_bytes_that_do_not_hold_their_field_are_refused(data, why):
    with pytest.raises(ValueError, match=why):
        read(data)


def test_a_number_may_be_written_in_more_bytes_than_it_needs():
    assert read(b"\x08\x81\x80\x00" + b"\x08" + b"\xff" * 9 + b"\x01") == [
        (1, VARINT, 1),
        (1, VARINT, (1 << 64) - 1),
    ]


@LEAN
@given(data=st.binary(max_size=200))
def test_whatever_the_bytes_are_they_are_read_or_refused(data):
    try:
        found = read(data)
    except ValueError:
        return
    assert all(field > 0 for field, _, _ in found)
