"""Asking for a diff, and the answer: their bytes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, U16, U32, message_refuses_every_cut, message_round_trip, message_survives

from schemas.asking import (
    ASK_BYTES,
    Question,
    Reply,
    decode_ask,
    decode_reply,
    encode_ask,
    encode_reply,
)
from schemas.errors import WireError
from schemas.names import Epoch
from schemas.outcomes import Reason

PAGE = (Path(__file__).parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
PAIRS = st.lists(U32, min_size=2, max_size=2, unique=True).map(sorted)
ASKS = st.builds(lambda epoch, pair: Question(Epoch(epoch), *pair), U16, PAIRS)


@LEAN
@given(ask=ASKS)
def test_an_ask_is_read_back_and_takes_5_to_15_bytes(ask):
    message_round_trip(encode_ask, decode_ask, ask)
    message_refuses_every_cut(decode_ask, encode_ask(ask))
    assert 5 <= len(encode_ask(ask)) <= 15


@LEAN
@given(ask=ASKS, diff=st.binary(max_size=600))
def test_a_reply_is_read_back_and_says_what_was_asked(ask, diff):
    reply = Reply(ask.epoch, ask.first, ask.last, diff)
    message_round_trip(encode_reply, decode_reply, reply)
    assert decode_reply(encode_reply(reply)).asked == ask


@LEAN
@given(data=st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data):
    message_survives(decode_ask, data)
    message_survives(decode_reply, data)


def test_the_bytes_are_those_of_the_page():
    ask = Question(Epoch(1), 3, 300)
    assert encode_ask(ask).hex() == "94010103cd012c"
    assert f"`{encode_ask(ask).hex(' ')}`" in PAGE
    assert encode_reply(Reply(ask.epoch, 3, 300, b"\x02\x80\x00")).hex() == "94010103cd012c028000"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", Reason.MALFORMED),
        ("90", Reason.MALFORMED),
        ("9401010304ff", Reason.MALFORMED),  # a byte too many
        ("9402010304", Reason.UNKNOWN_WIRE),
        ("94c3010304", Reason.UNKNOWN_WIRE),
        ("94010103a0", Reason.MALFORMED),
        ("9401010303", Reason.BAD_NUMBER),
        ("9401010403", Reason.BAD_NUMBER),
        ("940101ff04", Reason.BAD_NUMBER),
        ("93010103", Reason.MALFORMED),
        ("dd00100000010103", Reason.MALFORMED),
        ("9501010304c4ff", Reason.MALFORMED),
    ],
)
def test_an_ask_that_is_none_is_refused(data, reason):
    with pytest.raises(WireError) as refused:
        decode_ask(bytes.fromhex(data))
    assert refused.value.reason is reason


def test_what_a_newer_peer_appends_is_passed_over_within_bounds():
    assert decode_ask(bytes.fromhex("9601010304a26869c3")) == Question(Epoch(1), 3, 4)
    with pytest.raises(WireError):
        decode_ask(bytes.fromhex("9401010304") + bytes(ASK_BYTES))
