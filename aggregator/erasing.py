"""Erases a device from an archive: tombstones in the place of what it has sent.

Every segment from the first that holds something of the device is written again, under its own
name, with the hash of the one before: the chain holds again when the last is written, and the mark
in Redis moves to its new hash. A run that was interrupted leaves a broken chain that a replay
refuses; the next run joins it, and says so. Copies that were made before are not reached.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from aggregator.archiver import BusyError, writing
from aggregator.depot import Depot
from aggregator.segments import SegmentName, hash_of, pack, unpack, without_device
from schemas.errors import ConfigError
from schemas.keys import TaskKeys
from schemas.log import EntryId
from schemas.names import DeviceId, TaskName

PATIENCE_S: Final = 30.0
"""How long to wait for an aggregator that is writing a segment."""

_MARK_LUA: Final = """#!lua flags=allow-oom
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'hash', ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did: entries that became tombstones, and links that were broken before."""

    entries: int = 0
    joined: int = 0

    def __add__(self, other: "Erased") -> "Erased":
        return Erased(self.entries + other.entries, self.joined + other.joined)


async def erase_archived(
    redis: Redis,
    task: TaskName,
    depot: Depot,
    device: DeviceId,
    until: EntryId,
    *,
    said: Callable[[int, int], None] = lambda _done, _all: None,
) -> Erased:
    """Erase what a device has sent up to an entry, in every life of the task.

    `said` hears how many segments are done, of how many. Raises ConfigError: a segment is torn, or
    somebody writes the archive without end.
    """
    keys = TaskKeys(task)
    try:
        async with writing(redis, keys, PATIENCE_S) as lock:
            total = Erased()
            for epoch in await asyncio.to_thread(depot.epochs, task):
                names = await asyncio.to_thread(depot.segments, task, epoch)
                rewriting = _Rewriting(depot, task, device, until)
                for number, name in enumerate(names):
                    await lock.renew()
                    total += await asyncio.to_thread(rewriting.step, epoch, name)
                    said(number + 1, len(names))
                if names:
                    args = (str(names[-1].last), rewriting.after)
                    await _await(redis.eval(_MARK_LUA, 1, keys.archived, *args))
            return total
    except BusyError as exc:
        raise ConfigError("archive", f"{exc}; run this again") from exc


async def _await(answer: Any) -> None:
    """redis-py's types do not say that its asyncio half always has to be awaited."""
    await answer


class _Rewriting:
    """One chain, segment by segment."""

    def __init__(self, depot: Depot, task: TaskName, device: DeviceId, until: EntryId) -> None:
        self._depot = depot
        self._task = task
        self._device = device
        self._until = until
        self._before: str | None = None
        self.after = ""

    def step(self, epoch: int, name: SegmentName) -> Erased:
        """Write one segment again if anything in it changes."""
        file = self._depot.file(self._task, epoch, name)
        segment = unpack(file, self._depot.read(file))
        previous = segment.title.previous
        if self._before is None:
            self._before = self.after = previous  # the first keeps what it says
        broken = previous not in {self._before, self.after}
        left = without_device(segment, self._device, self._until)
        gone = sum(entry.gone for entry in left) - sum(entry.gone for entry in segment.entries)
        self._before = segment.hash
        if not gone and previous == self.after:
            self.after = segment.hash
            return Erased(joined=int(broken))
        data = pack(self._task, left, self.after, segment.title.fold)
        self._depot.write(file, data)
        self.after = hash_of(data)
        return Erased(gone, int(broken))
