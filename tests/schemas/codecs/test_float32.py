import numpy as np
import pytest
from laws import generator

from schemas.codecs import Ask
from schemas.codecs.float32 import FLOAT32
from schemas.delta import peak
from schemas.errors import WireError
from schemas.outcomes import Reason


def test_the_payload_is_decoded_in_place():
    payload = np.arange(5, dtype="<f4").tobytes()
    values = FLOAT32.decode(memoryview(payload), 5).values
    assert np.shares_memory(values, np.frombuffer(payload, dtype=np.uint8))
    assert not values.flags.writeable


def test_too_few_bytes_are_truncated_and_too_many_oversized():
    for length, reason in ((19, Reason.TRUNCATED), (21, Reason.OVERSIZED)):
        with pytest.raises(WireError) as caught:
            FLOAT32.decode(memoryview(bytes(length)), 5)
        assert caught.value.reason is reason


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_passes_the_codec_and_is_seen_by_peak(number):
    vector = np.array([0.0, number, 1.0], dtype=np.float32)
    payload = FLOAT32.encode(vector, Ask(), generator())
    values = FLOAT32.decode(memoryview(payload), 3).values
    assert values.tobytes() == vector.tobytes()
    assert not np.isfinite(peak(values))
