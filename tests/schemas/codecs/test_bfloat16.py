import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator

from schemas.codecs.bfloat16 import drawn, nearest, read, round_up, widen
from schemas.errors import WireError
from schemas.outcomes import Reason

SCALES = st.lists(st.floats(0, 2.0**127, width=32), min_size=1, max_size=30).map(
    lambda numbers: np.array(numbers, dtype=np.float32)
)


@LEAN
@given(scales=SCALES)
def test_rounding_goes_up_to_the_nearest_or_to_a_neighbour(scales):
    above, close, chance = (
        widen(halves) for halves in (round_up(scales), nearest(scales), drawn(scales, generator()))
    )
    below = widen((scales.view(np.uint32) >> 16).astype(np.uint16))
    assert ((below <= scales) & (scales <= above)).all()
    assert (above.view(np.uint32) - below.view(np.uint32) <= 1 << 16).all()
    assert (np.abs(close - scales) <= np.minimum(scales - below, above - scales)).all()
    assert ((chance == below) | (chance == above)).all()
    assert (above[scales == below] == scales[scales == below]).all(), "exact ones stay"


def test_what_is_drawn_is_right_on_average():
    scale = np.full(40_000, 1.0 + 2.0**-7 * 0.3)
    mean = float(widen(drawn(scale, generator())).mean(dtype=np.float64))
    assert abs(mean - scale[0]) < 4 * 2.0**-7 * np.sqrt(0.3 * 0.7 / 40_000)


def test_the_largest_stays_finite():
    largest = np.array([np.finfo(np.float32).max])
    for halves in (round_up(largest), nearest(largest), drawn(largest, generator())):
        assert halves.tolist() == [0x7F7F]


def test_bytes_are_little_endian_and_no_scale_is_negative():
    assert read(memoryview(bytes.fromhex("803f003f"))).tolist() == [1.0, 0.5]
    with pytest.raises(WireError) as caught:
        read(memoryview(bytes.fromhex("803f0080")))
    assert caught.value.reason is Reason.BAD_NUMBER
