import numpy as np
import pytest
from laws import HEAVY, codec_is_unbiased, generator

from schemas.codecs import Ask
from schemas.codecs.int8 import INT8
from schemas.delta import peak
from schemas.errors import WireError
from schemas.outcomes import Reason


def _back(vector) -> np.ndarray:
    payload = INT8.encode(vector, Ask(), generator())
    assert len(payload) == vector.size + 2 * -(-vector.size // 1024)
    return INT8.decode(memoryview(payload), vector.size).values


def test_its_mean_is_the_vector():
    assert codec_is_unbiased(INT8, HEAVY, Ask(), 400) < 0.01


def test_no_coordinate_is_further_away_than_a_step_and_the_largest_is_not_clipped():
    vector = generator().standard_normal(2500).astype(np.float32)
    for start in (0, 1024, 2048):
        block = vector[start : start + 1024]
        step = np.abs(block).max() / 127 * (1 + 2.0**-7)
        assert (np.abs(_back(vector)[start : start + 1024] - block) <= step).all()


def test_a_loud_block_does_not_drown_a_quiet_one():
    vector = np.full(2048, 1e-6, dtype=np.float32)
    vector[:1024] = 1e6
    assert (np.abs(_back(vector) - vector) <= vector / 120).all()


def test_numbers_below_any_scale_are_rounded_by_chance():
    vector = np.full(1024, 2.0**-100, dtype=np.float32)
    back = _back(vector)
    assert set(back.tolist()) <= {0.0, 2.0**-96}
    assert abs(back.mean(dtype=np.float64) / 2.0**-100 - 1) < 0.6


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("803f0102", Reason.TRUNCATED),
        ("803f01020304", Reason.OVERSIZED),
        ("803f018003", Reason.BAD_NUMBER),
        ("80bf010203", Reason.BAD_NUMBER),
    ],
)
def test_a_wrong_length_minus_128_and_a_negative_scale_are_refused(payload, reason):
    with pytest.raises(WireError) as caught:
        INT8.decode(memoryview(bytes.fromhex(payload)), 3)
    assert caught.value.reason is reason


@pytest.mark.parametrize("scale", ["807f", "c07f", "7f7f"])
def test_a_scale_that_is_not_finite_passes_the_codec_and_is_seen_by_peak(scale):
    values = INT8.decode(memoryview(bytes.fromhex(scale + "00017f")), 3).values
    assert not np.isfinite(peak(values))
