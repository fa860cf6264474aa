"""Dense float16: 2 little-endian bytes a coordinate (IEEE 754 binary16).

To the nearest, so 11 bits of precision; what is larger than 65,504 is clipped to it, and what is
smaller than 3e-8 becomes zero.
"""

from typing import Final

import numpy as np

from schemas.codecs.codec import Ask, Codec
from schemas.codecs.length import exactly, needs
from schemas.delta import Dense
from schemas.params import Params

_LARGEST: Final = np.float32(65504)


def _least_bytes(size: int) -> int:
    return 2 * size


def _encode(vector: Params, ask: Ask, _rng: "np.random.Generator") -> bytes:
    needs("float16", _least_bytes(vector.size), ask)
    return np.clip(vector, -_LARGEST, _LARGEST).astype("<f2").tobytes()


def _decode(payload: memoryview, size: int) -> Dense:
    exactly(payload, _least_bytes(size))
    with np.errstate(invalid="ignore"):  # a signalling NaN is for admission to see
        return Dense(np.frombuffer(payload, dtype="<f2").astype(np.float32))


FLOAT16: Final = Codec(
    codec_id=3,
    name="float16",
    error_feedback=False,
    sparse=False,
    encode=_encode,
    decode=_decode,
    least_bytes=_least_bytes,
)
