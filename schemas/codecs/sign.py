"""One bit a coordinate: its sign, times the mean magnitude of its block of 1,024.

Karimireddy et al., "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML
2019, Algorithm 1, block by block. Biased: error feedback keeps the rest on the device.

Layout of n coordinates in B = ceil(n / 1024) blocks, the last one shorter:

    offset  size         what
    0       2 B          scales, bfloat16, little-endian, >= 0
    2 B     ceil(n / 8)  signs, 1 for minus, the first in the highest bit; spare bits are 0

Coordinate i is `scale[i div 1024]`, or minus that.
"""

from typing import Final

import numpy as np

from schemas.codecs import bfloat16
from schemas.codecs.codec import Ask, Codec
from schemas.codecs.int8 import BLOCK, blocks_of, in_blocks, to_all
from schemas.codecs.length import exactly, needs, no_spare_bits
from schemas.codecs.negate import negate
from schemas.delta import Dense
from schemas.params import Params


def _least_bytes(size: int) -> int:
    return bfloat16.BYTES * blocks_of(size) + -(-size // 8)


def _encode(vector: Params, ask: Ask, _rng: "np.random.Generator") -> bytes:
    needs("sign", _least_bytes(vector.size), ask)
    sums = np.add.reduce(np.abs(in_blocks(vector)), axis=1, dtype=np.float64)
    counts = np.full(sums.size, BLOCK)
    counts[-1] = vector.size - BLOCK * (sums.size - 1)
    return bfloat16.nearest(sums / counts).tobytes() + np.packbits(vector < 0).tobytes()


def _decode(payload: memoryview, size: int) -> Dense:
    exactly(payload, _least_bytes(size))
    head = bfloat16.BYTES * blocks_of(size)
    no_spare_bits(payload, size)
    values = to_all(bfloat16.read(payload[:head]), size)
    negate(values, np.unpackbits(np.frombuffer(payload[head:], dtype=np.uint8), count=size))
    return Dense(values)


SIGN: Final = Codec(
    codec_id=6,
    name="sign",
    error_feedback=True,
    sparse=False,
    encode=_encode,
    decode=_decode,
    least_bytes=_least_bytes,
)
