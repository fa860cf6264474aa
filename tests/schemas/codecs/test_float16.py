import numpy as np
import pytest
from laws import generator

from schemas.codecs import Ask
from schemas.codecs.float16 import FLOAT16
from schemas.delta import peak
from schemas.errors import WireError
from schemas.outcomes import Reason


def _back(vector) -> np.ndarray:
    vector = np.asarray(vector, dtype=np.float32)
    payload = FLOAT16.encode(vector, Ask(), generator())
    return FLOAT16.decode(memoryview(payload), vector.size).values


def test_numbers_keep_eleven_bits():
    numbers = generator().standard_normal(500).astype(np.float32)
    assert (np.abs(_back(numbers) - numbers) <= np.abs(numbers) * 2.0**-11).all()


def test_what_is_too_large_is_clipped_and_what_is_too_small_is_nothing():
    assert _back([65504, 65519, 65520, 1e38, -1e38, 2.0**-24, 2.0**-26]).tolist() == [
        *(65504.0, 65504.0, 65504.0, 65504.0, -65504.0),
        *(2.0**-24, 0.0),
    ]


def test_too_few_bytes_are_truncated_and_too_many_oversized():
    for length, reason in ((9, Reason.TRUNCATED), (11, Reason.OVERSIZED)):
        with pytest.raises(WireError) as caught:
            FLOAT16.decode(memoryview(bytes(length)), 5)
        assert caught.value.reason is reason


@pytest.mark.parametrize("half", ["007c", "00fc", "017c", "007e"])
def test_what_is_not_finite_passes_the_codec_and_is_seen_by_peak(half):
    values = FLOAT16.decode(memoryview(bytes.fromhex("003c" + half)), 2).values
    assert values[0] == 1.0
    assert not np.isfinite(peak(values))
