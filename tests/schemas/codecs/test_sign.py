import numpy as np
import pytest
from laws import generator

from schemas.codecs import Ask
from schemas.codecs.sign import SIGN
from schemas.errors import WireError
from schemas.outcomes import Reason


def _back(vector) -> np.ndarray:
    payload = SIGN.encode(vector, Ask(), generator())
    return SIGN.decode(memoryview(payload), vector.size).values


def test_every_coordinate_has_its_sign_and_the_mean_magnitude_of_its_block():
    vector = generator().standard_normal(2500).astype(np.float32)
    back = _back(vector)
    assert ((back > 0) == (vector >= 0)).all()
    for start in (0, 1024, 2048):
        mean = np.abs(vector[start : start + 1024]).mean(dtype=np.float64)
        assert np.ptp(np.abs(back[start : start + 1024])) == 0
        assert abs(back[start]) == pytest.approx(mean, rel=2.0**-8)


def test_what_one_message_leaves_out_later_ones_bring():
    """Error feedback: a message alone misses six tenths, three hundred of them a few hundredths."""
    vector = generator().standard_normal(1500).astype(np.float32)
    residual, sent = np.zeros_like(vector), np.zeros_like(vector)
    for _ in range(300):
        residual = residual + vector
        back = _back(residual)
        residual, sent = residual - back, sent + back
    missed = [np.linalg.norm(mean - vector) for mean in (_back(vector), sent / 300)]
    assert missed[0] > 0.5 * np.linalg.norm(vector)
    assert missed[1] < 0.1 * np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("803f", Reason.TRUNCATED),
        ("803f8000", Reason.OVERSIZED),
        ("803f90", Reason.MALFORMED),
        ("80bf80", Reason.BAD_NUMBER),
    ],
)
def test_a_wrong_length_spare_bits_and_a_negative_scale_are_refused(payload, reason):
    with pytest.raises(WireError) as caught:
        SIGN.decode(memoryview(bytes.fromhex(payload)), 3)
    assert caught.value.reason is reason
