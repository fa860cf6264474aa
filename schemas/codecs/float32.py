"""Dense float32: the delta itself, 4 little-endian bytes a coordinate. The reference codec.

Decoding is a view of the bytes that came in (the payload starts at a multiple of 4), no copy.
"""

from typing import Final

import numpy as np

from schemas.codecs.codec import Ask, Codec
from schemas.delta import Dense
from schemas.errors import ConfigError, WireError
from schemas.outcomes import Reason
from schemas.params import Params


def _encode(vector: Params, ask: Ask, _rng: "np.random.Generator") -> bytes:
    if 0 < ask.budget < 4 * vector.size:
        raise ConfigError("uplink", f"float32 needs {4 * vector.size} bytes, not {ask.budget}")
    return vector.astype("<f4", copy=False).tobytes()


def _decode(payload: memoryview, size: int) -> Dense:
    if len(payload) < 4 * size:
        detail = f"{len(payload)} bytes for {size} float32"
        raise WireError(Reason.TRUNCATED, detail)
    if len(payload) > 4 * size:
        detail = f"{len(payload)} bytes for {size} float32"
        raise WireError(Reason.OVERSIZED, detail)
    return Dense(np.frombuffer(payload, dtype="<f4"))


FLOAT32: Final = Codec(
    codec_id=0,
    name="float32",
    error_feedback=False,
    encode=_encode,
    decode=_decode,
    least_bytes=lambda size: 4 * size,
)
