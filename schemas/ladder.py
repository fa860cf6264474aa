"""Which diffs there are, what their blobs are called, and which lead from one version to another.

Publications of a task are counted: serial 0, 1, 2 ... A diff of level j begins at a serial that is
a multiple of 2^j and ends 2^j further, so that any two are joined by few of them. Pure.
"""

from hashlib import sha256

import numpy as np

from schemas.lattice import LEVELS
from schemas.names import Epoch, ModelVersion
from schemas.params import Params


def blob_name(epoch: Epoch, serial: int, level: int) -> str:
    """The blob of the diff that begins at `serial`: `d{epoch}-{serial}-{level}`."""
    return f"d{epoch}-{serial}-{level}"


def keyframe_name(epoch: Epoch, version: ModelVersion) -> str:
    """The blob of a version's keyframe: `k{epoch}-{version}`."""
    return f"k{epoch}-{version}"


def origin_name(whole: Params) -> str:
    """The blob of W0: `o` and 8 hex digits of SHA-256 over all its float32 (every kind)."""
    return f"o{sha256(np.ascontiguousarray(whole, dtype='<f4').data).hexdigest()[:8]}"


def path(first: int, last: int) -> list[tuple[int, int]]:
    """(serial, level) of the fewest diffs that lead from `first` to `last`, in order.

    Each is the longest that begins there and does not overshoot. Empty when first >= last; at most
    max(1, 2 log2(last - first)) where they are SPAN apart or less, so at most 10.
    """
    steps = []
    while first < last:
        level = _highest(first, last - first)
        steps.append((first, level))
        first += 1 << level
    return steps


def ends_at(serial: int) -> list[int]:
    """Levels, ascending, whose diff ends at this serial: level j began at `serial - 2^j`.

    The diff of level j > 0 is the merge of those of level j - 1 from `serial - 2^j` and from
    `serial - 2^(j-1)`. None ends at serial 0.
    """
    return list(range(_highest(serial, serial) + 1)) if serial > 0 else []


def _highest(serial: int, room: int) -> int:
    """The highest level that is aligned at `serial` and spans at most `room` >= 1."""
    level = 0
    while level + 1 < LEVELS and serial % (2 << level) == 0 and 2 << level <= room:
        level += 1
    return level
