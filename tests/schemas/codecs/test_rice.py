import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator, refuses_without_allocating

from schemas.codecs import rice
from schemas.errors import WireError
from schemas.outcomes import Reason

COUNTS = st.lists(st.integers(0, 40) | st.integers(0, 5000), max_size=60)
PARAMETERS = st.integers(0, rice.LARGEST_PARAMETER)


def _array(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_quotients_come_first_then_remainders():
    bits = rice.write(_array([0, 5, 2]), 1)
    assert "".join(map(str, bits)) == "1" + "001" + "01" + "0" + "1" + "0"


@LEAN
@given(values=COUNTS, b=PARAMETERS, before=st.integers(0, 9), after=st.integers(0, 9))
def test_what_is_written_is_read_wherever_it_stands(values, b, before, after):
    written = rice.write(_array(values), b)
    assert written.size == rice.cost(_array(values), b)
    bits = np.concatenate([np.ones(before), written, np.ones(after)]).astype(np.uint8)
    read, end = rice.read(bits, before, len(values), b)
    assert read.tolist() == values
    assert end == before + written.size
    below = sum(values) + 1
    sums, end = rice.read_sums(bits, before, len(values), b, below=below, most=len(values))
    assert sums.tolist() == np.cumsum(_array(values)).tolist()
    assert end == before + written.size


@LEAN
@given(values=COUNTS)
def test_the_best_parameter_is_the_best_of_all_and_the_smaller_of_two(values):
    costs = [rice.cost(_array(values), b) for b in range(rice.LARGEST_PARAMETER + 1)]
    assert rice.best(_array(values)) == costs.index(min(costs))


def test_the_best_parameter_of_the_largest_values_is_the_largest():
    assert rice.best(_array([1 << 40] * 3)) == rice.LARGEST_PARAMETER


@pytest.mark.parametrize("below", [1, 2, 3, 9_610, 1 << 28])
def test_one_value_never_takes_more_than_it_is_said_to(below):
    for value in {0, below // 2, below - 1}:
        one = _array([value])
        assert rice.cost(one, rice.best(one)) <= rice.most_of_one(below)


@LEAN
@given(width=st.integers(0, 32), data=st.data())
def test_fixed_widths_have_their_highest_bit_first(width, data):
    values = data.draw(st.lists(st.integers(0, (1 << width) - 1), max_size=20))
    bits = rice.write_fixed(_array(values), width)
    assert "".join(map(str, bits)) == "".join(f"{v:0{width}b}" for v in values if width)
    read, end = rice.read_fixed(bits, 0, len(values), width)
    assert read.tolist() == values
    assert end == bits.size


@LEAN
@given(values=COUNTS.filter(len), b=PARAMETERS)
def test_bits_cut_anywhere_are_truncated(values, b):
    bits = rice.write(_array(values), b)
    for cut in range(max(0, bits.size - 70), bits.size):
        with pytest.raises(WireError) as caught:
            rice.read(bits[:cut], 0, len(values), b)
        assert caught.value.reason is Reason.TRUNCATED


@pytest.mark.parametrize("b", [0, 7, 31])
def test_a_count_that_the_bits_cannot_hold_is_refused_without_allocating(b):
    bits = np.ones(800, dtype=np.uint8)
    for count in (801, 1 << 40):
        refuses_without_allocating(
            lambda count=count: rice.read_sums(bits, 0, count, b, below=1 << 28, most=1 << 28),
            Reason.TRUNCATED,
        )


@pytest.mark.parametrize(("values", "b"), [([3, 4], 0), ([3, 4], 2), ([0, 7], 31)])
def test_a_sum_must_stay_below_what_it_counts(values, b):
    bits = rice.write(_array(values), b)
    assert rice.read_sums(bits, 0, 2, b, below=8, most=2)[0][-1] == 7
    with pytest.raises(WireError) as caught:
        rice.read_sums(bits, 0, 2, b, below=7, most=2)
    assert caught.value.reason is Reason.BAD_INDEX


def test_more_values_than_allowed_are_refused_without_a_list_of_them():
    bits = np.ones(1 << 20, dtype=np.uint8)
    few = bits[:100]
    assert rice.read_sums(few, 0, 100, 0, below=1, most=100)[1] == 100
    refuses_without_allocating(
        lambda: rice.read_sums(bits, 0, bits.size, 0, below=1, most=100), Reason.BAD_INDEX
    )
    with pytest.raises(WireError) as caught:
        rice.read_sums(few, 0, 101, 0, below=1, most=50)
    assert caught.value.reason is Reason.TRUNCATED, "what is not there comes first"


def test_no_list_is_made_of_ones_that_nobody_reads():
    """They cost 8 bytes each, and a payload may be millions of them."""
    bits = np.ones(5 << 20, dtype=np.uint8)
    bits[: (2 << 20) + 7] = 0
    values, end = rice.read(bits, 0, 3, 0)
    assert (values.tolist(), end) == ([(2 << 20) + 7, 0, 0], (2 << 20) + 10)
    tracemalloc.start()
    rice.read(bits, 0, 3, 0)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert highest < 9 << 20
    bits[(2 << 20) + 9 :] = 0
    with pytest.raises(WireError):
        rice.read(bits, 0, 3, 0)


def test_sums_beyond_64_bits_are_refused_not_wrapped():
    """2^33 zeros would be needed to reach 2^64 honestly; the reader must not depend on that."""
    count = 1 << 12
    bits = np.concatenate([np.zeros(1 << 12), np.ones(count), np.zeros(31 * count)])
    with pytest.raises(WireError) as caught:
        rice.read_sums(bits.astype(np.uint8), 0, count, 31, below=1 << 28, most=count)
    assert caught.value.reason is Reason.BAD_INDEX


def test_packing_fills_a_byte_with_zeros_and_nothing_else_may_follow():
    payload = rice.pack(np.ones(3, dtype=np.uint8), np.ones(6, dtype=np.uint8))
    assert payload == b"\xff\x80"
    bits = rice.unpack(memoryview(payload))
    rice.finish(bits, 9)
    for end, reason in ((8, Reason.OVERSIZED), (0, Reason.OVERSIZED)):
        with pytest.raises(WireError) as caught:
            rice.finish(bits, end)
        assert caught.value.reason is reason
    with pytest.raises(WireError) as caught:
        rice.finish(rice.unpack(memoryview(b"\xff\x81")), 9)
    assert caught.value.reason is Reason.MALFORMED


def test_hundreds_of_thousands_of_values_go_through():
    values = generator().geometric(0.02, 300_000).astype(np.int64) - 1
    b = rice.best(values)
    payload = rice.pack(rice.write(values, b))
    bits = rice.unpack(memoryview(payload))
    read, end = rice.read(bits, 0, values.size, b)
    rice.finish(bits, end)
    assert (read == values).all()
