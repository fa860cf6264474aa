import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, NAMES

from schemas.errors import InvariantError
from schemas.outbox import Say, Spread, Sweep, from_fields, to_fields

RECORDS = (
    st.builds(Say, NAMES, st.binary(max_size=80), st.booleans())
    | st.builds(Spread, NAMES, st.integers(64, 1 << 20))
    | st.builds(Sweep, NAMES, st.integers(1, 1 << 25))
)


@LEAN
@given(record=RECORDS)
def test_a_record_survives_the_stream(record):
    assert from_fields(to_fields(record)) == record


def test_keeping_and_saying_are_told_apart():
    assert to_fields(Say("model", b"", retain=True))[b"k"] == b"keep"
    assert to_fields(Say("events", b"", retain=False))[b"k"] == b"say"


@pytest.mark.parametrize("fields", [{}, {b"k": b"shout"}])
def test_a_record_that_fedmq_did_not_write_is_our_bug(fields):
    with pytest.raises(InvariantError, match="kind"):
        from_fields(fields)
