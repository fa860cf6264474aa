"""The payloads of codecs 2 and 5, read again from docs/wire.md (section 4): scale, gaps, signs."""

from collections import Counter
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from fedmq.simulator.checker.bits import Bits
from fedmq.simulator.checker.message import Refused, read_count


def read_impulses(
    payload: bytes, size: int, *, apart: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places, of which none is repeated, and their values. Raises Refused.

    `apart`: what is to be added to every gap but the first. With 0 a place may be hit again.
    """
    if len(payload) < 3:
        raise Refused("truncated")
    scale = read_scales(payload[:2])[0]
    k, start = read_count(payload, 2)
    if not k and scale != 0:
        raise Refused("malformed")
    bits = Bits(payload[start:])
    gaps = bits.rice(k, bits.number(5)) if k else []
    places = list(accumulate(gap + apart * (number > 0) for number, gap in enumerate(gaps)))
    if (places and places[-1] >= size) or (not apart and k > 16 * size):
        raise Refused("bad_index")
    hits = Counter(places)
    signs = bits.take(len(hits))
    bits.end()
    minus = np.array([sign == "1" for sign in signs], np.bool_)
    with np.errstate(all="ignore"):
        values = np.array(list(hits.values()), np.float32) * scale
    values[minus] = -values[minus]
    return np.array(list(hits), np.int64), values


def read_scales(data: bytes) -> NDArray[np.float32]:
    """bfloat16, little-endian: the upper two bytes of a float32. None may be negative."""
    halves = np.frombuffer(data, "<u2").astype(np.uint32)
    if (halves >= 0x8000).any():
        raise Refused("bad_number")
    return (halves * 65536).astype(np.uint32).view(np.float32)
