import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from schemas.codecs.varint import read, write
from schemas.errors import WireError
from schemas.outcomes import Reason


@LEAN
@given(count=st.integers(0, (1 << 35) - 1), before=st.binary(max_size=3))
def test_a_count_comes_back_from_as_few_bytes_as_it_needs(count, before):
    spelt = write(count)
    assert len(spelt) == max(1, -(-count.bit_length() // 7))
    assert read(memoryview(before + spelt + b"\xff"), len(before)) == (
        count,
        len(before) + len(spelt),
    )


@pytest.mark.parametrize(
    ("spelt", "reason"),
    [
        ("", Reason.TRUNCATED),
        ("80", Reason.TRUNCATED),
        ("ffffff", Reason.TRUNCATED),
        ("8000", Reason.MALFORMED),
        ("ff8000", Reason.MALFORMED),
        ("ffffffffff01", Reason.MALFORMED),
    ],
)
def test_a_count_that_ends_too_early_too_late_or_in_a_zero_is_refused(spelt, reason):
    with pytest.raises(WireError) as caught:
        read(memoryview(bytes.fromhex(spelt)), 0)
    assert caught.value.reason is reason
