"""The payload of an update, read again from docs/wire.md (section 4): places and values.

One coordinate after another, in plain Python: slow, and easy to believe.
"""

import struct
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedmq.simulator.checker.impulses import read_impulses, read_scales
from fedmq.simulator.checker.message import Refused

Values: TypeAlias = NDArray[np.float32]
Places: TypeAlias = slice | NDArray[np.int64]
"""Where the values belong: everywhere, or at these indices, of which none is repeated."""


def read_payload(codec: int, payload: bytes, size: int) -> tuple[Places, Values]:
    """A delta of `size` parameters. Raises Refused."""
    match codec:
        case 0:
            return _float32(payload, size)
        case 1:
            return _topk_int8(payload, size)
        case 2:
            return read_impulses(payload, size, apart=0)
        case 3:
            return _float16(payload, size)
        case 4:
            return _int8(payload, size)
        case 5:
            return read_impulses(payload, size, apart=1)
    raise ValueError(codec)


def _float32(payload: bytes, size: int) -> tuple[Places, Values]:
    _exactly(payload, 4 * size)
    return slice(None), np.frombuffer(payload, "<f4").astype(np.float32)


def _float16(payload: bytes, size: int) -> tuple[Places, Values]:
    _exactly(payload, 2 * size)
    with np.errstate(all="ignore"):
        return slice(None), np.frombuffer(payload, "<f2").astype(np.float32)


def _int8(payload: bytes, size: int) -> tuple[Places, Values]:
    """A scale for every 1,024 coordinates, then a byte for each."""
    blocks = (size + 1023) // 1024
    _exactly(payload, 2 * blocks + size)
    scales = read_scales(payload[: 2 * blocks])
    steps = np.frombuffer(payload[2 * blocks :], np.int8)
    if -128 in steps.tolist():
        raise Refused("bad_number")
    with np.errstate(all="ignore"):
        return slice(None), steps.astype(np.float32) * scales[np.arange(size) // 1024]


def _exactly(payload: bytes, length: int) -> None:
    if len(payload) < length:
        raise Refused("truncated")
    if len(payload) > length:
        raise Refused("oversized")


def _topk_int8(payload: bytes, size: int) -> tuple[Places, Values]:
    if len(payload) < 9:
        raise Refused("truncated")
    width, scale, k = struct.unpack("<BfI", payload[:9])
    if scale < 0:
        raise Refused("bad_number")
    if width not in {1, 2}:
        raise Refused("malformed")
    if not 1 <= k <= size:
        raise Refused("bad_index")
    gaps = payload[9 : len(payload) - k]
    if len(payload) < 9 + k * width + k or len(gaps) % width:
        raise Refused("truncated")
    places = _places(gaps, width, k, size)
    steps = np.frombuffer(payload[-k:], np.int8)
    if -128 in steps.tolist():
        raise Refused("bad_number")
    with np.errstate(all="ignore"):
        return np.array(places, np.int64), steps.astype(np.float32) * np.float32(scale)


def _places(gaps: bytes, width: int, k: int, size: int) -> list[int]:
    """Add the gaps up. A unit of all ones is an escape: it adds, and names no place."""
    escape = 256**width - 1
    places, here, unit = [], 0, escape
    for start in range(0, len(gaps), width):
        unit = int.from_bytes(gaps[start : start + width], "little")
        here += unit
        if unit != escape:
            places.append(here)
    if len(places) != k or unit == escape:
        raise Refused("truncated")
    if places[-1] >= size:
        raise Refused("bad_index")
    if len(set(places)) != k:
        raise Refused("bad_index")
    return places
