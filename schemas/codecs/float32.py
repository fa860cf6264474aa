"""Dense float32: the delta itself, 4 little-endian bytes a coordinate. The reference codec.

Decoding is a view of the bytes that came in (the payload starts at a multiple of 4), no copy.
"""

from typing import Final

import numpy as np

from schemas.codecs.codec import Ask, Codec
from schemas.codecs.length import exactly, needs
from schemas.delta import Dense
from schemas.params import Params


def _least_bytes(size: int) -> int:
    return 4 * size


def _encode(vector: Params, ask: Ask, _rng: "np.random.Generator") -> bytes:
    needs("float32", _least_bytes(vector.size), ask)
    return vector.astype("<f4", copy=False).tobytes()


def _decode(payload: memoryview, size: int) -> Dense:
    exactly(payload, _least_bytes(size))
    return Dense(np.frombuffer(payload, dtype="<f4"))


FLOAT32: Final = Codec(
    codec_id=0,
    name="float32",
    error_feedback=False,
    sparse=False,
    encode=_encode,
    decode=_decode,
    least_bytes=_least_bytes,
)
