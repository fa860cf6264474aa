"""Dense int8: a byte a coordinate, a scale for every 1,024, rounded by chance so that none is lost.

A value is rounded up with the chance of its fraction and down otherwise (the quantiser of Alistarh
et al., "QSGD", NeurIPS 2017, section 3, with the largest magnitude of a block for the norm). The
mean over draws is the vector itself: no residual is needed.

Layout, little-endian, of n coordinates in B = ceil(n / 1024) blocks, the last one shorter:

    offset  size  what
    0       2 B   scales, bfloat16, >= 0
    2 B     n     values, int8, never -128

Coordinate i is `value[i] * scale[i div 1024]` in float32.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import bfloat16
from schemas.codecs.codec import Ask, Codec
from schemas.codecs.length import exactly, needs
from schemas.delta import Dense
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params

BLOCK: Final = 1024

_FINEST: Final = 2.0**-96
"""No scale but zero is smaller: its reciprocal stays a float32."""


def length(size: int) -> int:
    """Bytes that `size` values take together with their scales."""
    return bfloat16.BYTES * blocks_of(size) + size


def blocks_of(size: int) -> int:
    """How many blocks `size` values make."""
    return -(-size // BLOCK)


def in_blocks(vector: Params) -> NDArray[np.float32]:
    """A copy of shape (blocks, 1024), the last one filled up with zeros."""
    filled = np.zeros((blocks_of(vector.size), BLOCK), dtype=np.float32)
    filled.reshape(-1)[: vector.size] = vector
    return filled


def to_all(scales: Params, size: int) -> Params:
    """The scale of every coordinate, shape (size,)."""
    return np.repeat(scales, BLOCK)[:size]


def quantise(vector: Params, factor: float, rng: "np.random.Generator") -> bytes:
    """The vector times `factor`, as scales and values. Its mean over draws is exact."""
    blocks = in_blocks(vector)
    peaks = np.abs(blocks).max(axis=1).astype(np.float64) * (factor / 127)
    halves = bfloat16.round_up(np.where(peaks > 0, np.maximum(peaks, _FINEST), 0.0))
    scales = bfloat16.widen(halves)
    ratios = np.divide(factor, scales, out=np.zeros(scales.size), where=scales > 0)
    blocks *= ratios.astype(np.float32)[:, np.newaxis]
    blocks += rng.random(blocks.shape, dtype=np.float32)
    np.floor(blocks, out=blocks)
    np.clip(blocks, -127, 127, out=blocks)
    return halves.tobytes() + blocks.reshape(-1)[: vector.size].astype(np.int8).tobytes()


def restore(payload: memoryview, size: int) -> Params:
    """`size` float32 values from what `quantise` wrote. The length has been checked."""
    head = bfloat16.BYTES * blocks_of(size)
    scales = bfloat16.read(payload[:head])
    steps: NDArray[Any] = np.frombuffer(payload[head:], dtype=np.int8)
    if steps.size and steps.min() == -128:
        raise WireError(Reason.BAD_NUMBER, "a value of -128")
    values = steps.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # a bad scale is for admission to see
        values *= to_all(scales, size)
    return values


def _encode(vector: Params, ask: Ask, rng: "np.random.Generator") -> bytes:
    needs("int8", length(vector.size), ask)
    return quantise(vector, 1.0, rng)


def _decode(payload: memoryview, size: int) -> Dense:
    exactly(payload, length(size))
    return Dense(restore(payload, size))


INT8: Final = Codec(
    codec_id=4,
    name="int8",
    error_feedback=False,
    sparse=False,
    encode=_encode,
    decode=_decode,
    least_bytes=length,
)
