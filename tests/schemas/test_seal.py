import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, NAMES, RECEIPTS, message_survives

from schemas.errors import WireError
from schemas.messages import Receipt
from schemas.names import Boot, DeviceId, Epoch, ModelVersion
from schemas.seal import SEAL_BYTES, opened, sealed, sealed_array, unsealed
from schemas.wire import decode_receipt, encode_receipt

MESSAGES = st.binary(min_size=1, max_size=200)


@LEAN
@given(message=MESSAGES, device=NAMES)
def test_what_was_sealed_opens(message, device):
    whole = sealed(message, DeviceId(device))
    assert len(whole) == len(message) + SEAL_BYTES
    assert unsealed(whole, DeviceId(device)) == message


@LEAN
@given(message=MESSAGES, device=NAMES, place=st.integers(0), bit=st.integers(0, 7))
def test_one_flipped_bit_is_found_wherever_it_is(message, device, place, bit):
    whole = bytearray(sealed(message, DeviceId(device)))
    whole[place % len(whole)] ^= 1 << bit
    assert unsealed(bytes(whole), DeviceId(device)) is None


@LEAN
@given(message=MESSAGES, device=NAMES, other=NAMES)
def test_what_came_under_another_name_does_not_open(message, device, other):
    found = unsealed(sealed(message, DeviceId(device)), DeviceId(other))
    assert (found is not None) == (device == other)


@pytest.mark.parametrize("data", [b"", b"\0", bytes(4)])
def test_what_is_too_short_for_a_seal_has_none(data):
    assert unsealed(data, DeviceId("d")) is None


def test_a_known_seal():
    assert sealed(b"56789", DeviceId("1234"))[-4:].hex() == "cbf43926"  # CRC-32's own check value


@LEAN
@given(receipt=RECEIPTS, device=NAMES, place=st.integers(0), bit=st.integers(0, 7))
def test_an_altered_sealed_receipt_is_refused_and_a_plain_one_is_read(receipt, device, place, bit):
    name = DeviceId(device)
    plain = encode_receipt(receipt)
    assert decode_receipt(opened(plain, name)) == receipt
    whole = bytearray(sealed_array(plain, name))
    assert decode_receipt(opened(bytes(whole), name)) == receipt
    whole[place % len(whole)] ^= 1 << bit
    with pytest.raises(WireError):
        decode_receipt(opened(bytes(whole), name))


def test_no_seal_is_taken_for_an_element_that_was_appended():
    """A receipt whose seal would read as one text of three bytes, once its length is altered."""
    receipt = Receipt(Epoch(0), Boot(0), 0, 0, 0, 0, ModelVersion(0))
    for number in range(3000):
        name = DeviceId(f"d{number}")
        whole = bytearray(sealed_array(encode_receipt(receipt), name))
        whole[0] ^= 1  # an array of nine
        with pytest.raises(WireError):
            decode_receipt(opened(bytes(whole), name))


@LEAN
@given(data=st.binary(max_size=80))
def test_whatever_the_bytes_are_they_open_or_stay_as_they_are(data):
    message_survives(lambda raw: decode_receipt(opened(raw, DeviceId("d"))), data)
