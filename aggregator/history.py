"""A task's history as stored entries: what the archive holds, then what is still in Redis.

The shell around `aggregator.replay`: it reads segment by segment and batch by batch, so that a
history is never in memory as a whole. Refuses (ConfigError) a broken chain, and a log whose
beginning was trimmed when nothing else holds it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from aggregator.archive import Backup
from aggregator.archive import unpack as unpack_export
from aggregator.checkpoint import read_small_state, restore, vector_from_bytes
from aggregator.depot import Depot
from aggregator.replay import check_fold, digests
from aggregator.segments import BrokenArchiveError, Logged, Segment, Tail, check_follows, unpack
from aggregator.state import ORIGIN, TaskState, origin_state
from aggregator.tasks import no_such
from schemas.errors import ConfigError
from schemas.keys import TaskKeys
from schemas.log import EntryId
from schemas.names import Epoch, TaskName

_BATCH: Final = 64


@dataclass(slots=True)
class History:
    """Where to begin, what was recorded, and what must be said of it.

    Attributes:
        begin: makes the state before the first entry.
        start: the id that the first entry must follow.
        recorded: version -> the first 16 hex digits of its digest.
        epoch: the folder of the archive.
        started_ms: when the first entry was written; 0: nobody knows.
        mark: what Redis says of the archive.
        end: the last entry that was folded and committed; None: nobody knows.
        version: that the model had then.
        notes: sentences for people, more of them while it is read.
    """

    begin: Callable[[], TaskState]
    start: EntryId
    recorded: dict[int, str]
    epoch: int
    started_ms: int = 0
    mark: Tail | None = None
    end: EntryId | None = None
    version: int | None = None
    notes: list[str] = field(default_factory=list)


async def open_history(
    task: TaskName,
    redis: Redis | None,
    depot: Depot | None,
    *,
    export: Path | None = None,
    epoch: int | None = None,
) -> History:
    """Find where a history begins: its origin, or an export. Raises ConfigError."""
    backup = None if export is None else await asyncio.to_thread(_read_export, export)
    found = await _from_redis(redis, task) if redis is not None else None
    if redis is not None and found is None:
        raise no_such(task)
    if found is None:
        if depot is None:
            raise ConfigError("archive", "say where it is (--archive URL), or leave --offline out")
        found = await _from_depot(depot, task, epoch)
    if backup is not None:
        found.recorded = digests(backup.versions) | found.recorded
        found.begin, found.start = _beginning(backup), EntryId.parse(backup.state.cursor)
    return found


async def entries(
    task: TaskName, history: History, redis: Redis | None, depot: Depot | None
) -> AsyncIterator[Logged]:
    """The entries after the history's start, in order. Raises ConfigError."""
    after, began = history.start, history.start > ORIGIN
    tail: Tail | None = None
    if depot is not None:
        async for logged, end in _archived(task, history, depot):
            tail = end
            if not began:
                _check_beginning(history, logged)
                began = True
            after = logged.id
            yield logged
        _check_mark(history, tail)
    if redis is None:
        return
    if tail is not None and history.mark is None:
        history.notes.append(
            "Redis knows nothing of this archive: it may be that of another history of the task"
        )
    checked = tail is None and history.start == ORIGIN
    async for logged in _streamed(redis, task, after):
        if history.end is not None and logged.id > history.end:
            return  # nobody has folded it yet
        if not began:
            _check_beginning(history, logged)
            began = True
        elif not checked:
            await _check_no_gap(redis, task, after, history)
            checked = True
        yield logged


async def _archived(
    task: TaskName, history: History, depot: Depot
) -> AsyncIterator[tuple[Logged, Tail]]:
    tail: Tail | None = None
    names = await asyncio.to_thread(depot.segments, task, history.epoch)
    needed = [name for name in names if name.last > history.start]
    if not needed and names:
        needed = names[-1:]  # nothing new in it, but it shows where the archive ends
    files = [depot.file(task, history.epoch, name) for name in needed]
    first = True
    async for file, segment in _read_ahead(depot, files):
        if segment.title.task != task:
            raise ConfigError(file, f"belongs to task {segment.title.task!r}; move it away")
        check_fold(file, segment.title.fold)
        if first and needed != names:  # begun from an export: the chain is read from here
            tail = Tail(segment.entries[-1].id, segment.hash)
        else:
            tail = check_follows(file, segment, tail)
        first = False
        for logged in segment.entries:
            if logged.id > history.start:
                yield logged, tail


async def _read_ahead(depot: Depot, files: list[str]) -> AsyncIterator[tuple[str, Segment]]:
    """Read segments in order, the next one in a thread while the last one is folded."""
    loop = asyncio.get_running_loop()
    ahead: asyncio.Future[Segment] | None = None
    try:
        for number, file in enumerate(files):
            segment = await (ahead or loop.run_in_executor(None, _read_segment, depot, file))
            ahead = None
            if number + 1 < len(files):
                ahead = loop.run_in_executor(None, _read_segment, depot, files[number + 1])
            yield file, segment
    finally:
        if ahead is not None:
            ahead.cancel()  # nobody asks for it any more


def _read_segment(depot: Depot, file: str) -> Segment:
    return unpack(file, depot.read(file))


def _check_beginning(history: History, first: Logged) -> None:
    """Whether the log is there from its first entry on."""
    if history.started_ms and first.id.ms > history.started_ms:
        begins = f"what came before entry {first.id} was trimmed, and no archive that was given"
        remedy = "give --archive URL, or --from with an export that was made before"
        raise ConfigError("log", f"{begins} holds it; {remedy}")


def _check_mark(history: History, tail: Tail | None) -> None:
    """Whether the archive ends where Redis says."""
    mark = history.mark
    if mark is None or tail is None:
        return
    if tail.last < mark.last:
        lost = f"ends at {tail.last}, but the log was archived up to {mark.last}"
        raise BrokenArchiveError("archive", f"{lost}; its newest files are missing")
    if tail.last == mark.last and tail.hash != mark.hash:
        history.notes.append(
            "the newest segment is not the one that Redis has noted: it was altered, or an erasure "
            "was interrupted (run fedmq device erase again)"
        )


async def _check_no_gap(redis: Redis, task: TaskName, after: EntryId, history: History) -> None:
    """Whether the log in Redis goes on where the archive, or the export, ends."""
    older: Any = await redis.xrange(TaskKeys(task).log, min="-", max=str(after), count=1)
    if older or (history.mark is not None and history.mark.last <= after):
        return
    history.notes.append(
        f"Redis holds nothing before entry {after}: if the log was trimmed beyond it, entries are "
        "missing there and digests differ"
    )


async def _streamed(redis: Redis, task: TaskName, after: EntryId) -> AsyncIterator[Logged]:
    key, place = TaskKeys(task).log, f"({after}"
    while True:
        batch: Any = await redis.xrange(key, min=place, count=_BATCH)
        if not batch:
            return
        for entry_id, fields in batch:
            yield Logged(EntryId.parse(entry_id), fields)
        place = f"({batch[-1][0].decode()}"


async def _from_redis(redis: Redis, task: TaskName) -> History | None:
    keys = TaskKeys(task)
    pipe = redis.pipeline(transaction=True)
    pipe.hmget(keys.origin, ["epoch", "params"])
    pipe.hget(keys.checkpoint, "small")
    pipe.hgetall(keys.versions)
    pipe.hmget(keys.archived, ["id", "hash"])
    (epoch, params), small, versions, mark = await pipe.execute()
    if epoch is None:
        return None
    last = read_small_state(small) if small else None
    noted = None if None in mark else Tail(EntryId.parse(mark[0]), mark[1].decode())
    begin = _origin(Epoch(int(epoch)), params)
    found = History(begin, ORIGIN, digests(versions), int(epoch), mark=noted)
    if last is not None:
        found.started_ms, found.version = last.started_ms, last.version
        found.end = EntryId.parse(last.cursor)
    return found


async def _from_depot(depot: Depot, task: TaskName, epoch: int | None) -> History:
    known = await asyncio.to_thread(depot.epochs, task)
    if not known or (epoch is not None and epoch not in known):
        there = ", ".join(map(str, known)) or "nothing"
        raise ConfigError("archive", f"holds no such life of task {task!r} (epochs: {there})")
    number = max(known) if epoch is None else epoch
    params = await asyncio.to_thread(depot.origin, task, number)
    if params is None:
        raise ConfigError("archive", f"{depot.folder(task, number)} has no origin.msgpack")
    return History(_origin(Epoch(number), params), ORIGIN, {}, number)


def _origin(epoch: Epoch, params: bytes) -> Callable[[], TaskState]:
    return lambda: origin_state(epoch, vector_from_bytes(params))


def _beginning(backup: Backup) -> Callable[[], TaskState]:
    return lambda: restore(backup.state, backup.arrays, backup.windows, backup.devices)


def _read_export(path: Path) -> Backup:
    try:
        return unpack_export(path.read_bytes())
    except OSError as exc:
        raise ConfigError("from", f"cannot be read: {exc}") from exc


__all__ = ["History", "entries", "open_history"]
