import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from laws import LEAN

from edge_agent.compressor import compress
from schemas.codecs import CODECS, Ask, CodecOptions, codec_by_name
from schemas.delta import to_dense

TOPK = codec_by_name("topk_int8")
FLOAT32 = codec_by_name("float32")
OPTIONS = CodecOptions(density=0.25)
NUMBERS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


def vectors(size: int | st.SearchStrategy[int]) -> st.SearchStrategy[np.ndarray]:
    return npst.arrays(np.float32, size, elements=NUMBERS)


def generator() -> np.random.Generator:
    return np.random.default_rng(1)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    size = draw(st.integers(1, 60))
    return draw(vectors(size)), draw(vectors(size))


@LEAN
@given(pair=pairs(), density=st.floats(0.01, 1.0))
def test_what_is_sent_and_what_stays_behind_are_together_what_was_there(pair, density):
    delta, residual = pair
    both = delta + residual
    sent = compress(delta, residual, TOPK, Ask(CodecOptions(density=density)), generator())
    decoded = to_dense(TOPK.decode(memoryview(sent.payload), delta.size), delta.size)
    assert sent.residual is not None
    assert sent.residual.dtype == np.float32
    np.testing.assert_allclose(decoded + sent.residual, both, rtol=1e-6, atol=0)
    unsent = decoded == 0
    assert sent.residual[unsent].tobytes() == both[unsent].tobytes(), "unsent to the last bit"


@LEAN
@given(pair=pairs())
def test_a_first_update_is_one_with_a_residual_of_zeros(pair):
    delta, _ = pair
    first = compress(delta, None, TOPK, Ask(OPTIONS), generator())
    with_zeros = compress(delta, np.zeros_like(delta), TOPK, Ask(OPTIONS), generator())
    assert first.payload == with_zeros.payload
    np.testing.assert_array_equal(first.residual, with_zeros.residual)


@LEAN
@given(pair=pairs())
def test_neither_input_is_changed(pair):
    delta, residual = pair
    before = delta.tobytes(), residual.tobytes()
    for codec in CODECS.values():
        compress(delta, residual, codec, Ask(OPTIONS), generator())
    assert (delta.tobytes(), residual.tobytes()) == before


def test_every_coordinate_is_told_in_time_because_nothing_decays() -> None:
    delta, residual = np.linspace(0.1, 1, 40, dtype=np.float32), None
    told = np.zeros_like(delta)
    for _ in range(50):
        sent = compress(delta, residual, TOPK, Ask(OPTIONS), generator())
        told += to_dense(TOPK.decode(memoryview(sent.payload), 40), 40)
        residual = sent.residual
    assert residual is not None
    np.testing.assert_allclose(told + residual, 50 * delta, rtol=1e-4)
    assert (told > 0).all()


@LEAN
@given(pair=pairs())
def test_a_stateless_codec_is_given_no_residual_and_leaves_none(pair):
    delta, residual = pair
    sent = compress(delta, residual, FLOAT32, Ask(OPTIONS), generator())
    assert sent.residual is None
    assert sent.payload == delta.tobytes()


def test_a_residual_of_another_model_counts_as_none() -> None:
    delta = floats(1, 2, 3, 4)
    other = compress(delta, floats(9, 9), TOPK, Ask(OPTIONS), generator())
    none = compress(delta, None, TOPK, Ask(OPTIONS), generator())
    assert other.payload == none.payload


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 2])
def test_what_is_not_a_number_is_refused_with_what_to_do_about_it(codec, bad, place) -> None:
    delta = floats(1, 2, 3)
    delta[place] = bad
    with pytest.raises(ValueError, match=r"train\.learning_rate"):
        compress(delta, None, codec, Ask(OPTIONS), generator())


def test_a_sum_beyond_float32_is_refused_too() -> None:
    huge = floats(3e38, 1)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="infinity"):
        compress(huge, huge, TOPK, Ask(OPTIONS), generator())


def test_a_bad_residual_does_not_hurt_a_codec_that_needs_none() -> None:
    sent = compress(floats(1), floats(float("nan")), FLOAT32, Ask(OPTIONS), generator())
    assert sent.payload == floats(1).tobytes()
