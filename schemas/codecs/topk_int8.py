"""Top-k with int8 values and gap-coded indices; error feedback keeps the rest on the device.

The k coordinates of largest magnitude, each rounded to a multiple of one scale per update.
Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, Algorithm 1 (the selection and the
memory); the scale is max|v| / 127 and values lie in -127 .. 127. Under a budget the k that fills
it, else the density's share.

Layout, little-endian:

    offset  size       what
    0       1          width of a gap unit in bytes: 1 or 2
    1       4          scale, float32, >= 0
    5       4          count k, uint32, at least 1
    9       ...        gap units (uint8 or uint16), exactly k of which are not escapes
    end-k   k          values, int8, never -128

A gap is the distance to the index before (the first: to 0). A unit of all ones (255 or 65535) is
an escape: it adds its value and carries no coordinate. A gap of 0 after the first would repeat an
index and is refused. Positions are one running sum, so decoding is vectorised.
"""

import struct
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.codecs.codec import Ask, Codec
from schemas.codecs.largest import largest, largest_that_fit
from schemas.codecs.length import needs
from schemas.delta import Sparse
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params

_HEAD: Final = struct.Struct("<BfI")
_UNIT: Final[dict[int, Any]] = {1: np.dtype("<u1"), 2: np.dtype("<u2")}
_ESCAPE: Final = {1: 0xFF, 2: 0xFFFF}


def _gap_units(indices: NDArray[np.int64], width: int) -> NDArray[Any]:
    escape = _ESCAPE[width]
    gaps = np.diff(indices, prepend=0)
    escapes = gaps // escape
    ends = np.cumsum(escapes + 1) - 1
    units: NDArray[Any] = np.full(int(ends[-1]) + 1, escape, dtype=_UNIT[width])
    units[ends] = gaps - escapes * escape
    return units


def _least_bytes(size: int) -> int:
    """The last coordinate alone, however far it is, in the width that takes less."""
    return _HEAD.size + 1 + min(w * ((size - 1) // _ESCAPE[w] + 1) for w in _UNIT)


def _length(indices: NDArray[np.int64]) -> int:
    gaps = np.diff(indices, prepend=0)
    units = min(w * (indices.size + int((gaps // _ESCAPE[w]).sum())) for w in _UNIT)
    return _HEAD.size + indices.size + units


def _chosen(vector: Params, ask: Ask) -> NDArray[np.int64]:
    if ask.budget and vector.any():  # a coordinate takes 2 bytes at least
        return largest_that_fit(vector, (ask.budget - _HEAD.size) // 2, ask.budget, _length)
    share = 0.0 if ask.budget else ask.options.density
    return largest(vector, max(1, min(vector.size, round(share * vector.size))))


def _encode(vector: Params, ask: Ask, _rng: "np.random.Generator") -> bytes:
    needs("topk_int8", _least_bytes(vector.size), ask)
    indices = _chosen(vector, ask)
    chosen = vector[indices]
    scale = np.float32(np.max(np.abs(chosen)) / np.float32(127))
    steps = np.rint(chosen / scale) if scale > 0 else np.zeros_like(chosen)
    values = np.clip(steps, -127, 127).astype(np.int8)
    units = min((_gap_units(indices, width) for width in (1, 2)), key=lambda u: u.nbytes)
    head = _HEAD.pack(units.itemsize, float(scale), indices.size)
    return head + units.tobytes() + values.tobytes()


def _decode(payload: memoryview, size: int) -> Sparse:
    if len(payload) < _HEAD.size:
        raise WireError(Reason.TRUNCATED, f"{len(payload)} bytes are less than the head")
    width, scale, count = _HEAD.unpack_from(payload)
    if scale < 0:
        raise WireError(Reason.BAD_NUMBER, f"a scale of {scale:g}")
    if width not in _UNIT:
        raise WireError(Reason.MALFORMED, f"gap units of {width} bytes")
    if not 1 <= count <= size:
        raise WireError(Reason.BAD_INDEX, f"{count} of {size} coordinates")
    end = len(payload) - count
    if end < _HEAD.size + count * width or (end - _HEAD.size) % width:
        raise WireError(Reason.TRUNCATED, f"{len(payload)} bytes for {count} coordinates")
    units = np.frombuffer(payload[_HEAD.size : end], dtype=_UNIT[width])
    indices = _positions(units, _ESCAPE[width], count, size)
    steps = np.frombuffer(payload[end:], dtype=np.int8)
    if steps.min() == -128:
        raise WireError(Reason.BAD_NUMBER, "a value of -128")
    with np.errstate(over="ignore", invalid="ignore"):  # a bad scale is for admission to see
        return Sparse(indices, steps.astype(np.float32) * np.float32(scale))


def _positions(units: NDArray[Any], escape: int, count: int, size: int) -> NDArray[np.int64]:
    carries = units != escape
    carried = np.count_nonzero(carries)
    if carried != count or not carries[-1]:
        raise WireError(Reason.TRUNCATED, f"{carried} gaps for {count} coordinates")
    indices = np.add.accumulate(units, dtype=np.int64)
    if carried != units.size:
        indices = indices[carries]
    if indices[-1] >= size:
        raise WireError(Reason.BAD_INDEX, f"index {indices[-1]} of {size}")
    if _repeats(units, indices):
        raise WireError(Reason.BAD_INDEX, "an index is repeated")
    return indices


def _repeats(units: NDArray[Any], indices: NDArray[np.int64]) -> bool:
    """Only a unit of zero can repeat an index: without one nobody need look further."""
    if np.count_nonzero(units[1:]) == units.size - 1:
        return False
    return bool((indices[1:] == indices[:-1]).any())


TOPK_INT8: Final = Codec(
    codec_id=1,
    name="topk_int8",
    error_feedback=True,
    sparse=True,
    encode=_encode,
    decode=_decode,
    least_bytes=_least_bytes,
)
