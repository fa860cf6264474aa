"""Carries the folded log into the archive, before anything of it is trimmed.

It works beside the fold, never in it. Only entries that were folded and committed are sealed; a
segment is written and read again before the mark in Redis (`archived`) moves, and the mark moves
only for who holds the task. What lies beyond the mark is never believed: it is compared with the
log, adopted when it is the same, and written again when it is not. `bound` is what may be trimmed.

A failing archive stops nothing: it is told once, tried again with growing pauses, and nothing is
trimmed meanwhile. Nor does a Redis that refuses: what must be written there is small, and makes
room (`allow-oom`). Refuses to touch a folder that holds another history of the task, or nothing
where something was archived.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final

from redis.asyncio import Redis

from aggregator.depot import Depot
from aggregator.segments import Logged, Segment, SegmentName, Tail, hash_of, pack, unpack
from aggregator.settings import AggregatorSettings
from aggregator.state import ORIGIN
from redis_session.lease import Lease, fresh_token
from schemas.errors import ConfigError
from schemas.keys import TaskKeys
from schemas.log import EntryId
from schemas.names import TaskName

log = logging.getLogger("fedmq.aggregator")

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
"""How long a failing archive is left alone."""

LOCK_S: Final = 120.0
"""How long a writer that died keeps others from writing the archive."""

_LOCK_MS: Final = round(LOCK_S * 1000)

_COUNT: Final = 16
_COUNT_MAX: Final = 512

_LOOK_S: Final = 0.05
"""How long to wait before asking again whether the archive is free."""

_RENEW_LUA: Final = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

NOTE_LUA: Final = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], 'id', ARGV[2], 'hash', ARGV[3])
return 1
"""


class LostLeaseError(Exception):
    """Another aggregator holds the task: its archive is not ours to write any more."""


class BusyError(Exception):
    """Somebody else is writing the archive just now: an erasure, as a rule."""


class Archiver:
    """Seals one task's log. `token` is the holder's; `cursor` where its memory began."""

    def __init__(
        self, redis: Redis, task: TaskName, token: str, settings: AggregatorSettings
    ) -> None:
        self._redis = redis
        self._task = task
        self._keys = TaskKeys(task)
        self._token = token
        self._settings = settings
        self._depot: Depot | None = None
        self._epoch = 0
        self._origin: bytes | None = None
        self._loaded: EntryId | None = None
        self._cursor = ORIGIN
        self._sealed = ORIGIN
        self._known: Tail | None = None
        self._bytes = 0
        self._wake = asyncio.Event()
        self._note = redis.register_script(NOTE_LUA)

    @property
    def bound(self) -> EntryId | None:
        """What may be trimmed of the log: nothing above; None: all that was folded."""
        return self._sealed if self._settings.archive_url else None

    def look(self, cursor: EntryId, size: int = 0) -> None:
        """See how far the fold is committed, and how many bytes that were."""
        self._loaded = self._loaded or cursor
        self._cursor = cursor
        self._bytes += size
        if self._bytes >= self._settings.archive_bytes:
            self._wake.set()

    async def run(self) -> None:
        """Seal whenever it is time, until cancelled."""
        if not self._settings.archive_url:
            await asyncio.Event().wait()
        pause, told, began = FIRST_PAUSE_S, "", False
        while True:
            trouble = ""
            try:
                if began:
                    await self._until_due()
                    await self.seal()
                else:
                    await self.adopt()
                    began = True
            except asyncio.CancelledError:
                raise
            except BusyError:
                await asyncio.sleep(pause)
                continue
            except Exception as exc:  # noqa: BLE001 - Redis, or an object store's library
                trouble = f"{type(exc).__name__}: {exc}"
            if not trouble:
                if told:
                    log.info("archive_works_again task=%s", self._task)
                pause, told = FIRST_PAUSE_S, ""
                continue
            if trouble != told:
                still = "the log is kept, nothing is trimmed; trying again"
                log.warning("archive_failed task=%s error=%s: %s", self._task, trouble, still)
            told = trouble
            self._wake.set()  # what was due stays due
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _until_due(self) -> None:
        until = monotonic() + self._settings.archive_seconds
        try:
            async with asyncio.timeout(until - monotonic()):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    # -- sealing ---------------------------------------------------------------------------

    async def adopt(self) -> None:
        """See what the archive holds already, so that it may be trimmed."""
        async with self._locked():
            await self._tail()

    async def seal(self) -> int:
        """Seal all that was folded; return how many segments that made.

        Raises OSError, ConfigError, BusyError and LostLeaseError; whatever was sealed is noted.
        """
        made = 0
        self._bytes = 0
        while self._sealed < (until := self._cursor):
            async with self._locked():
                tail = await self._tail()
                entries = await self._entries(tail, until)
                if not entries:
                    return made
                await self._write(entries, tail)
                made += 1
        return made

    async def _write(self, entries: list[Logged], tail: Tail | None) -> None:
        depot, previous = self._opened(), "" if tail is None else tail.hash
        name = SegmentName(entries[0].id, entries[-1].id)
        file = depot.file(self._task, self._epoch, name)
        data, digest = await asyncio.to_thread(_packed, self._task, entries, previous)
        if await self._redis.get(self._keys.holder) != self._token.encode():
            raise LostLeaseError(f"another aggregator holds {self._task}")
        await asyncio.to_thread(depot.write, file, data)
        await self._move_mark(Tail(name.last, digest))
        log.info("archived task=%s entries=%d until=%s", self._task, len(entries), name.last)

    async def _move_mark(self, tail: Tail) -> None:
        """Note what the archive holds, if the task is ours; then it may be trimmed."""
        keys, args = [self._keys.holder, self._keys.archived], [self._token, str(tail.last)]
        if not await self._note(keys=keys, args=[*args, tail.hash]):
            raise LostLeaseError(f"another aggregator holds {self._task}")
        self._sealed, self._known = tail.last, tail

    async def _entries(self, tail: Tail | None, until: EntryId) -> list[Logged]:
        """What follows in the log, as much as fits into one segment."""
        found: list[Logged] = []
        size, after = 0, "-" if tail is None else f"({tail.last}"
        count = _COUNT
        while True:
            batch = await self._range(after, str(until), count)
            for entry in batch:
                found.append(entry)
                size += entry.size
                if size >= self._settings.archive_bytes:
                    return found
            if len(batch) < count:
                return found
            after = f"({batch[-1].id}"
            mean = max(1, size // len(found))
            count = max(1, min(_COUNT_MAX, self._settings.archive_bytes // mean))

    # -- what is there ---------------------------------------------------------------------

    async def _tail(self) -> Tail | None:
        """The end of the chain, believed only as far as Redis or the log says the same.

        Moves the mark to it. Raises ConfigError: the archive holds another history, or less.
        """
        depot = await self._open()
        names = await asyncio.to_thread(depot.segments, self._task, self._epoch)
        mark = await self._mark()
        if mark is not None:
            self._check_there(depot, names, mark)
        await self._begin(depot)
        if mark is not None:
            names = await self._believed(depot, names, mark)
        if not names:
            self._sealed = ORIGIN
            return None
        if mark is not None and mark == self._known and names[-1].last == mark.last:
            self._sealed = mark.last
            return mark  # written or read by ourselves, and nobody has written since
        file = depot.file(self._task, self._epoch, names[-1])
        data = await asyncio.to_thread(depot.read, file)
        segment = await asyncio.to_thread(unpack, file, data)
        if mark is None:
            await self._check_continues(segment, depot.folder(self._task, self._epoch))
        tail = Tail(segment.entries[-1].id, segment.hash)
        if tail != mark:
            await self._move_mark(tail)
        self._sealed, self._known = tail.last, tail
        return tail

    def _check_there(self, depot: Depot, names: list[SegmentName], mark: Tail) -> None:
        """Whether the archive holds as much as it once did; until it does, nothing is trimmed."""
        if names and names[-1].last >= mark.last:
            return
        self._sealed = ORIGIN
        ends = f"ends at {names[-1].last}" if names else "holds no segment"
        lost = f"{depot.folder(self._task, self._epoch)} {ends}, but the log was archived up to"
        remedy = f"bring its files back (is it mounted?), or delete {self._keys.archived} in Redis"
        raise ConfigError("archive_url", f"{lost} {mark.last}; {remedy} to begin another archive")

    async def _believed(
        self, depot: Depot, names: list[SegmentName], mark: Tail
    ) -> list[SegmentName]:
        """Segments up to the mark, and those after it that hold what the log holds.

        A writer died before it noted the others, or the log has forgotten what they hold. Nothing
        that depends on them was trimmed: they are written again.
        """
        folder = depot.folder(self._task, self._epoch)
        believed = [name for name in names if name.last <= mark.last]
        beyond = names[len(believed) :]
        if beyond and (not believed or believed[-1].last != mark.last):
            raise ConfigError("archive_url", f"{folder} holds no segment that ends at {mark.last}")
        while beyond and await self._same(depot, beyond[0]):
            believed.append(beyond.pop(0))
        for name in reversed(beyond):
            log.info("archive_rewrites task=%s segment=%s", self._task, name)
            file = depot.file(self._task, self._epoch, name)
            await asyncio.to_thread(depot.remove, file)
        return believed

    async def _same(self, depot: Depot, name: SegmentName) -> bool:
        """Whether a segment beyond the mark holds what the log holds: it is all still there."""
        file = depot.file(self._task, self._epoch, name)
        try:
            segment = await asyncio.to_thread(
                unpack, file, await asyncio.to_thread(depot.read, file)
            )
        except ConfigError:
            return False
        first, last = segment.entries[0].id, segment.entries[-1].id
        if last > self._cursor:
            return False
        mine: list[Logged] = []
        after = str(first)
        while batch := await self._range(after, str(last), _COUNT):
            mine += batch
            after = f"({batch[-1].id}"
        return tuple(mine) == segment.entries

    async def _check_continues(self, segment: Segment, folder: str) -> None:
        """Redis has forgotten the mark: does the archive end where this log goes on?"""
        last = segment.entries[-1]
        if last.id == self._loaded:
            return
        known = await self._range(str(last.id), str(last.id), 1)
        if known != [last]:
            other = f"{folder} ends with an entry ({last.id}) that the log does not hold"
            remedy = "it belongs to another history of the task: choose another archive_url"
            raise ConfigError("archive_url", f"{other}; {remedy}")

    async def _mark(self) -> Tail | None:
        raw: Any = await self._redis.hmget(self._keys.archived, ["id", "hash"])
        if None in raw:
            return None
        return Tail(EntryId.parse(raw[0]), raw[1].decode())

    async def _range(self, first: str, last: str, count: int) -> list[Logged]:
        raw: Any = await self._redis.xrange(self._keys.log, min=first, max=last, count=count)
        return [Logged(EntryId.parse(entry_id), fields) for entry_id, fields in raw]

    async def _open(self) -> Depot:
        """The archive; nothing is written to it yet."""
        if self._depot is not None:
            return self._depot
        raw: Any = await self._redis.hmget(self._keys.origin, ["epoch", "params"])
        if None in raw:
            raise ConfigError("task", f"{self._task!r} has no origin any more")
        self._depot = await asyncio.to_thread(Depot, self._settings.archive_url)
        self._epoch, self._origin = int(raw[0]), raw[1]
        return self._depot

    async def _begin(self, depot: Depot) -> None:
        """Put the task's origin there, once it is known that this is the place."""
        if self._origin is None:
            return
        await asyncio.to_thread(depot.put_origin, self._task, self._epoch, self._origin)
        await asyncio.to_thread(depot.sweep, self._task, self._epoch)
        self._origin = None

    def _opened(self) -> Depot:
        assert self._depot is not None  # noqa: S101 - _tail has opened it
        return self._depot

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        async with writing(self._redis, self._keys):
            yield


def _packed(task: TaskName, entries: list[Logged], previous: str) -> tuple[bytes, str]:
    data = pack(task, entries, previous)
    return data, hash_of(data)


class Writing:
    """Being the only one that writes a task's archive, for LOCK_S at a time."""

    def __init__(self, redis: Redis, keys: TaskKeys) -> None:
        self._key = keys.archiving
        self._token = fresh_token(LOCK_S)
        self._lease = Lease(redis, self._key, self._token)
        self._renew = redis.register_script(_RENEW_LUA)

    async def begin(self) -> bool:
        """Whether nobody else was writing."""
        return await self._lease.hold(_LOCK_MS)

    async def renew(self) -> None:
        """Go on for as long again. Raises BusyError: it took too long, others may have written."""
        if not await self._renew(keys=[self._key], args=[self._token, _LOCK_MS]):
            raise BusyError(f"writing took longer than {LOCK_S:.0f} s without a sign of life")

    async def end(self) -> None:
        """Let others write."""
        try:
            await self.renew()
        except BusyError as exc:
            log.warning("archive_slow: %s", exc)
        await self._lease.release()


@asynccontextmanager
async def writing(redis: Redis, keys: TaskKeys, patience_s: float = 0.0) -> AsyncIterator[Writing]:
    """Be the only one that writes a task's archive. Raises BusyError."""
    mine, until = Writing(redis, keys), monotonic() + patience_s
    while not await mine.begin():
        if monotonic() >= until:
            raise BusyError("somebody else is writing the archive")
        await asyncio.sleep(_LOOK_S)
    try:
        yield mine
    finally:
        await mine.end()
