"""One scale, gaps and signs: the layout that sq and stc share.

    offset  size     what
    0       2        scale, bfloat16, little-endian, >= 0
    2       1 .. 5   k, varint (LEB128)
    ...     5 bits   Rice parameter b
            ...      k gaps in Rice code: all quotients, then all remainders (`schemas.codecs.rice`)
            ...      signs, 1 for minus
                     zeros up to a whole byte

k = 0 is a delta of nothing: it ends after the varint, and its scale is 0.
"""

import struct
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import bfloat16, rice, varint
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params

NOTHING: Final = bytes(bfloat16.BYTES + 1)
"""The payload of a vector of zeros."""


class Opened(NamedTuple):
    """What a payload says as far as its gaps: the signs begin at bit `end` of `bits`."""

    scale: np.float32
    sums: NDArray[np.int64]
    bits: rice.Bits
    end: int


def least_bytes(size: int) -> int:
    """One gap below `size` and one sign always fit into so many bytes."""
    return len(NOTHING) + -(-(rice.PARAMETER_BITS + rice.most_of_one(size) + 1) // 8)


def count_bits(gaps: NDArray[np.int64], signs: int) -> int:
    """How many bits `write` takes before it fills the last byte up."""
    head = 8 * (bfloat16.BYTES + len(varint.write(gaps.size))) + rice.PARAMETER_BITS
    return head + rice.cost(gaps, rice.best(gaps)) + signs


def write(scale: NDArray[np.uint16], gaps: NDArray[np.int64], minus: NDArray[np.bool_]) -> bytes:
    """A payload of at least one gap. `scale` is a bfloat16 of shape (1,)."""
    b = rice.best(gaps)
    return (
        scale.tobytes()
        + varint.write(gaps.size)
        + rice.pack(
            rice.write_fixed(np.array([b]), rice.PARAMETER_BITS),
            rice.write(gaps, b),
            minus.view(np.uint8),
        )
    )


def read(payload: memoryview, size: int, most: int) -> Opened:
    """Read as far as the signs; the gaps come added up, and their sum is below `size`.

    Raises WireError, also for more than `most` gaps; allocates O(len(payload)).
    """
    if len(payload) < len(NOTHING):
        raise WireError(Reason.TRUNCATED, f"{len(payload)} bytes are less than the head")
    scale = _scale(payload)
    count, head = varint.read(payload, bfloat16.BYTES)
    bits = rice.unpack(payload[head:])
    if not count and scale != 0:
        raise WireError(Reason.MALFORMED, "a scale, and nothing to scale")
    if not count:
        return Opened(scale, np.zeros(0, dtype=np.int64), bits, 0)
    if not bits.size:
        raise WireError(Reason.TRUNCATED, "the payload ends with its head")
    b = payload[head] >> (8 - rice.PARAMETER_BITS)
    sums, end = rice.read_sums(bits, rice.PARAMETER_BITS, count, b, below=size, most=most)
    return Opened(scale, sums, bits, end)


def _scale(payload: memoryview) -> np.float32:
    """One bfloat16 without the cost of an array. Infinity and NaN are for admission to see."""
    if payload[1] > 0x7F:
        raise WireError(Reason.BAD_NUMBER, "a negative scale")
    (scale,) = struct.unpack("<f", bytes((0, 0, payload[0], payload[1])))
    return np.float32(scale)


def read_values(opened: Opened, count: int) -> Params:
    """The scale under each of the `count` signs with which the payload must end.

    Raises WireError. float32, shape (count,).
    """
    end = opened.end + count
    minus = opened.bits[opened.end : end]
    if minus.size < count:
        raise WireError(Reason.TRUNCATED, f"the payload ends before {count} signs")
    rice.finish(opened.bits, end)
    return np.array((opened.scale, -opened.scale)).take(minus)
