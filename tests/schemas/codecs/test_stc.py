import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, OPTIONS, VECTORS, generator

from schemas.codecs import Ask, CodecOptions
from schemas.codecs.stc import STC
from schemas.delta import Sparse, peak, to_dense
from schemas.errors import WireError
from schemas.outcomes import Reason


def _decode(payload: bytes, size: int) -> Sparse:
    delta = STC.decode(memoryview(payload), size)
    assert isinstance(delta, Sparse)
    return delta


def _by_size(vector) -> list[int]:
    order = sorted(range(vector.size), key=lambda i: (-abs(float(vector[i])), i))
    return [i for i in order if vector[i]]


@LEAN
@given(vector=VECTORS, options=OPTIONS)
def test_the_largest_are_sent_as_their_mean(vector, options):
    """A plain sort says which ones; ties go to the lower index, zeros are left out."""
    delta = _decode(STC.encode(vector, Ask(options), generator()), vector.size)
    count = max(1, min(vector.size, round(options.density * vector.size)))
    chosen = sorted(_by_size(vector)[:count])
    assert delta.indices.tolist() == chosen
    if chosen:
        mean = np.abs(vector[chosen]).mean(dtype=np.float64)
        expected = np.copysign(mean, vector[chosen])
        assert delta.values == pytest.approx(expected, rel=2.0**-8, abs=2.0**-133)


@LEAN
@given(size=st.integers(200, 3000), budget=st.integers(24, 300), seed=st.integers(0, 100))
def test_under_a_budget_one_more_would_not_fit_or_not_help(size, budget, seed):
    vector = generator(seed).standard_t(3, size).astype(np.float32)
    payload = STC.encode(vector, Ask(budget=budget), generator())
    assert len(payload) <= budget
    count = _decode(payload, size).indices.size

    def sent(k: int) -> bytes:
        return STC.encode(vector, Ask(CodecOptions(density=k / size)), generator())

    def error(data: bytes) -> float:
        back = to_dense(_decode(data, size), size).astype(np.float64)
        return np.square(vector - back).sum()

    assert payload == sent(count)
    if count < size and len(sent(count + 1)) <= budget:
        assert error(sent(count + 1)) >= error(payload) * 0.9999


def test_a_packet_is_filled_to_the_last_byte_but_two():
    vector = generator().standard_normal(9_610).astype(np.float32)
    for budget in range(24, 300, 7):
        assert budget - 2 <= len(STC.encode(vector, Ask(budget=budget), generator())) <= budget


def test_a_vector_of_zeros_is_a_delta_of_nothing_in_three_bytes():
    zeros = np.zeros(40, dtype=np.float32)
    assert STC.encode(zeros, Ask(), generator()) == bytes(3)
    assert STC.encode(zeros, Ask(budget=30), generator()) == bytes(3)
    assert not _decode(bytes(3), 40).indices.size


# scale 1.0, then k, then bits
@pytest.mark.parametrize(
    ("what", "payload", "reason"),
    [
        ("a part of the head", "803f", Reason.TRUNCATED),
        ("no bits", "803f01", Reason.TRUNCATED),
        ("no end of a quotient", "803f0100000000", Reason.TRUNCATED),
        ("no sign", "803f0207", Reason.TRUNCATED),
        ("a negative scale", "80bf0106", Reason.BAD_NUMBER),
        ("a scale and no coordinate", "803f00", Reason.MALFORMED),
        ("a byte after the end", "803f010600", Reason.OVERSIZED),
        ("a bit after the end", "803f0105", Reason.MALFORMED),
        ("a gap out of range", "803f01000100", Reason.BAD_INDEX),
        ("a second index out of range", "803f02000c", Reason.BAD_INDEX),
    ],
    ids=lambda x: x if isinstance(x, str) and " " in x else "",
)
def test_refused_is(what, payload, reason):
    with pytest.raises(WireError) as caught:
        _decode(bytes.fromhex(payload), 8)
    assert caught.value.reason is reason


def test_the_last_coordinate_is_allowed_and_neighbours_have_a_gap_of_0():
    assert _decode(bytes.fromhex("803f020018"), 8).indices.tolist() == [6, 7]


@pytest.mark.parametrize("scale", ["807f", "c07f"], ids=["infinite", "not a number"])
def test_a_scale_that_is_not_finite_passes_the_codec_and_is_seen_by_peak(scale):
    assert not np.isfinite(peak(_decode(bytes.fromhex(scale + "0106"), 8).values))
