import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, OPTIONS, VECTORS, generator, refuses_without_allocating

from schemas.codecs import Ask, CodecOptions
from schemas.codecs.topk_int8 import TOPK_INT8
from schemas.delta import Sparse, peak
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import MAX_PARAMS


def _payload(width: int, scale: float, count: int, units: bytes, values: bytes) -> bytes:
    return struct.pack("<BfI", width, scale, count) + units + values


def _decode(payload: bytes, size: int) -> Sparse:
    delta = TOPK_INT8.decode(memoryview(payload), size)
    assert isinstance(delta, Sparse)
    return delta


def _encode(vector, density: float) -> bytes:
    return TOPK_INT8.encode(vector, Ask(CodecOptions(density=density)), generator())


@LEAN
@given(vector=VECTORS, options=OPTIONS)
def test_the_largest_are_sent_to_within_half_a_step(vector, options):
    """A plain sort says which ones; ties go to the lower index."""
    delta = _decode(TOPK_INT8.encode(vector, Ask(options), generator()), vector.size)
    count = max(1, min(vector.size, round(options.density * vector.size)))
    order = sorted(range(vector.size), key=lambda i: (-abs(float(vector[i])), i))
    assert delta.indices.tolist() == sorted(order[:count])
    step = float(np.max(np.abs(vector))) / 127
    error = np.abs(vector[delta.indices].astype(np.float64) - delta.values)
    assert (error <= step * 0.5001 + 1e-43).all()


@LEAN
@given(size=st.integers(50, 3000), budget=st.integers(24, 300), seed=st.integers(0, 100))
def test_under_a_budget_as_many_are_sent_as_fit(size, budget, seed):
    vector = generator(seed).standard_t(3, size).astype(np.float32)
    payload = TOPK_INT8.encode(vector, Ask(budget=budget), generator())
    assert len(payload) <= budget
    count = _decode(payload, size).indices.size
    assert payload == _encode(vector, count / size)
    assert count == size or len(_encode(vector, (count + 1) / size)) > budget


def test_the_last_of_many_coordinates_fits_into_the_least_bytes():
    for size in (1, 255, 256, 511, 600, 70_000):
        vector = np.zeros(size, dtype=np.float32)
        vector[-1] = 1.0
        least = TOPK_INT8.least_bytes(size)
        assert len(TOPK_INT8.encode(vector, Ask(budget=least), generator())) == least


def test_ties_go_to_the_lower_index():
    vector = np.array([1, 2, -2, 2, 1, 2], dtype=np.float32)
    assert _decode(_encode(vector, 0.5), 6).indices.tolist() == [1, 2, 3]


def test_a_vector_of_zeros_sends_zeros():
    delta = _decode(_encode(np.zeros(40, dtype=np.float32), 0.1), 40)
    assert delta.indices.tolist() == [0, 1, 2, 3]
    assert not delta.values.any()


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("beside", [-1, 0, 1])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_gaps_around_the_escape_round_trip(width, beside, times):
    """255 and 65535 are escapes: a gap of exactly that is an escape and a unit of 0."""
    gap = times * (0xFF if width == 1 else 0xFFFF) + beside
    indices = [3, 3 + gap] if width == 1 else [7, 7 + gap, 7 + 2 * gap, 9 + 2 * gap]
    vector = np.zeros(indices[-1] + 5, dtype=np.float32)
    vector[indices] = [127.0] * len(indices)
    payload = _encode(vector, len(indices) / vector.size)
    delta = _decode(payload, vector.size)
    assert delta.indices.tolist() == indices
    assert delta.values.tolist() == [127.0] * len(indices)


def test_the_shorter_gap_unit_is_chosen():
    dense, thin = np.zeros(2000, dtype=np.float32), np.zeros(2000, dtype=np.float32)
    dense[::100], thin[::600] = 1.0, 1.0
    assert _encode(dense, 0.01)[0] == 1
    assert _encode(thin, 4 / 2000)[0] == 2
    single = np.zeros(400, dtype=np.float32)
    single[300] = 1.0
    assert _encode(single, 1 / 400)[0] == 1, "as long either way: the narrow one"


def test_numbers_so_small_that_the_scale_is_rounded_are_clipped_not_wrapped():
    tiny = np.float32(2.0**-149)
    delta = _decode(_encode(np.array([190 * tiny, -190 * tiny]), 1.0), 2)
    assert delta.values.tolist() == [127 * tiny, -127 * tiny]


@pytest.mark.parametrize(
    ("what", "payload", "reason"),
    [
        ("an unknown gap unit", _payload(3, 1, 1, b"\0\0\0", b"\1"), Reason.MALFORMED),
        ("no coordinate", _payload(1, 1, 0, b"", b""), Reason.BAD_INDEX),
        ("more coordinates than parameters", _payload(1, 1, 9, b"\0" * 9, b"\1" * 9),
         Reason.BAD_INDEX),
        ("an index out of range", _payload(1, 1, 2, b"\0\x08", b"\1\1"), Reason.BAD_INDEX),
        ("a repeated index", _payload(1, 1, 2, b"\1\0", b"\1\1"), Reason.BAD_INDEX),
        ("a last unit that is an escape", _payload(1, 1, 1, b"\1\xff", b"\1"), Reason.TRUNCATED),
        ("too many gaps", _payload(1, 1, 1, b"\1\1", b"\1"), Reason.TRUNCATED),
        ("half a unit", _payload(2, 1, 1, b"\1\0\0", b"\1"), Reason.TRUNCATED),
        ("a value of -128", _payload(1, 1, 1, b"\0", b"\x80"), Reason.BAD_NUMBER),
        ("only a part of the head", b"\1\0\0", Reason.TRUNCATED),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_refused_is(what, payload, reason):
    with pytest.raises(WireError) as caught:
        _decode(payload, 8)
    assert caught.value.reason is reason


def test_the_last_index_and_the_extreme_values_are_allowed():
    delta = _decode(_payload(1, 0.5, 2, b"\0\7", b"\x81\x7f"), 8)
    assert delta.indices.tolist() == [0, 7]
    assert delta.values.tolist() == [-63.5, 63.5]
    assert np.unique(delta.indices).size == delta.indices.size


@pytest.mark.parametrize("count", [0xFFFF_FFFF, MAX_PARAMS])
@pytest.mark.parametrize("width", [1, 2])
def test_a_count_that_the_bytes_do_not_have_is_refused_without_allocating(count, width):
    payload = _payload(width, 1, count, b"\1" * 8, b"\1" * 8)
    reason = Reason.TRUNCATED if count == MAX_PARAMS else Reason.BAD_INDEX
    refuses_without_allocating(lambda: _decode(payload, MAX_PARAMS), reason)


def test_gaps_that_add_up_beyond_any_model_are_refused():
    payload = _payload(2, 1, 1, b"\xff\xff" * 50_000 + b"\0\0", b"\1")
    with pytest.raises(WireError) as caught:
        _decode(payload, MAX_PARAMS)
    assert caught.value.reason is Reason.BAD_INDEX


@pytest.mark.parametrize("scale", [np.nan, np.inf, 3e38])
def test_a_scale_that_is_not_finite_passes_the_codec_and_is_seen_by_peak(scale):
    """No warning either: a device must not be able to write into the server's log."""
    delta = _decode(_payload(1, scale, 2, b"\0\1", b"\0\x7f"), 4)
    assert not np.isfinite(peak(delta.values))


@pytest.mark.parametrize("scale", [-1.0, -np.inf])
def test_a_negative_scale_is_refused(scale):
    with pytest.raises(WireError) as caught:
        _decode(_payload(1, scale, 2, b"\0\1", b"\0\x7f"), 4)
    assert caught.value.reason is Reason.BAD_NUMBER


@LEAN
@given(widths=st.sampled_from([1, 2]), gaps=st.lists(st.integers(1, 900), min_size=1, max_size=20))
def test_either_gap_unit_may_be_sent_whatever_the_encoder_would_choose(widths, gaps):
    escape = 0xFF if widths == 1 else 0xFFFF
    units = b"".join(
        b"\xff" * (widths * (gap // escape)) + (gap % escape).to_bytes(widths, "little")
        for gap in gaps
    )
    delta = _decode(_payload(widths, 1, len(gaps), units, b"\1" * len(gaps)), sum(gaps) + 1)
    assert delta.indices.tolist() == np.cumsum(gaps).tolist()
