"""Answering a device that asks for one diff in place of several: what it costs is bounded. Pure.

Diffs are the server's own words: merging them opens nothing that a device has sent. What is asked
too often, for too much or for what is not there is not answered, and the device goes another way.
"""

from collections import OrderedDict
from collections.abc import Sequence
from functools import reduce
from typing import Final, TypeAlias

from schemas.asking import Question
from schemas.errors import WireError
from schemas.ladder import blob_name, path
from schemas.lattice import SPAN, decode_diff, encode_diff, merged
from schemas.names import DeviceId, TaskName
from schemas.outcomes import Reason

BURST: Final = 4.0
"""So many questions of one device are answered at once ..."""

EVERY_S: Final = 15.0
"""... and then one more after each so many seconds."""

DEVICES_KEPT: Final = 4096
"""Devices whose questions are counted; the one that was quiet longest is forgotten."""

PARAMS_MOST: Final = 4 << 20
"""In a larger model no diffs are merged: it would take too much memory beside the way up."""

REPLY_BYTES_MOST: Final = 1 << 16
"""A longer diff is not sent: it is better fetched in chunks."""

BLOBS_BYTES_MOST: Final = 4 * REPLY_BYTES_MOST
"""Diffs that are longer together are not merged: they would make a longer one than is sent, at some
400 bytes of memory and 3 us for each of theirs.
"""

CACHE_BYTES: Final = 4 << 20
"""What is kept of merged diffs, in bytes."""

Wish: TypeAlias = tuple[TaskName, Question]
"""What is wanted of which task."""


class Turns:
    """Counts what each device asks.

    A device begins with BURST turns, each question takes one, and every EVERY_S gives one back.
    """

    def __init__(self) -> None:
        self._left: OrderedDict[tuple[TaskName, DeviceId], tuple[float, float]] = OrderedDict()

    def take(self, task: TaskName, device: DeviceId, now: float) -> bool:
        """Whether it is this device's turn at `now`, in seconds of any steady clock."""
        left, since = self._left.pop((task, device), (BURST, now))
        left = min(BURST, left + (now - since) / EVERY_S)
        mine = left >= 1.0
        self._left[task, device] = (left - 1.0 if mine else left), now
        if len(self._left) > DEVICES_KEPT:
            self._left.popitem(last=False)
        return mine


class Recent:
    """Merged diffs that were asked for lately: a fleet that wakes together asks for the same."""

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self._most = most
        self._kept: OrderedDict[Wish, bytes] = OrderedDict()
        self._bytes = 0

    def find(self, wish: Wish) -> bytes | None:
        """The diff, if it is still here."""
        if wish in self._kept:
            self._kept.move_to_end(wish)
        return self._kept.get(wish)

    def keep(self, wish: Wish, diff: bytes) -> None:
        """Keep a diff, and forget those that nobody has asked for for longest."""
        self._bytes += len(diff) - len(self._kept.pop(wish, b""))
        self._kept[wish] = diff
        while self._bytes > self._most:
            _, oldest = self._kept.popitem(last=False)
            self._bytes -= len(oldest)


def names(ask: Question) -> list[str]:
    """The blobs that lead from one publication to the other, in order. Raises WireError."""
    if ask.last - ask.first > SPAN:
        raise WireError(Reason.BAD_NUMBER, f"no diffs lead over more than {SPAN} publications")
    steps = path(ask.first, ask.last)
    return [blob_name(ask.epoch, serial, level) for serial, level in steps]


def one_diff(blobs: Sequence[bytes], sizes: tuple[int, ...]) -> bytes:
    """Merge diffs, at least one, that follow each other. Raises WireError."""
    diffs = [decode_diff(blob, sizes) for blob in blobs]
    return encode_diff(reduce(lambda one, next_one: merged(one, next_one, sizes), diffs), sizes)
