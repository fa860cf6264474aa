"""A task out of Redis into a file, and back: the shell of `fedmq task export` and `import`.

An export is one consistent cut: the checkpoint and what it belongs to in one transaction, then the
log after its cursor, which only grows. An import is one transaction: a task that is whole, or none.
It ends its log with an entry that raises the epoch: what the restored log has forgotten is never
mistaken for what it knows, and every device fetches the model again by itself.
"""

from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import WatchError

from aggregator.archive import Backup
from aggregator.checkpoint import SCHEMA, SmallState, is_half, migrated
from aggregator.state import NO_DIFFS
from aggregator.store import as_bytes
from aggregator.tasks import (
    check_epoch,
    fresh_epoch,
    fresh_life,
    no_such,
    not_cleared,
    until_cleared,
)
from schemas.errors import ConfigError
from schemas.keys import LEAVING, TASKS, TaskKeys
from schemas.log import EntryId, EpochSet, to_fields
from schemas.names import TaskName

_BATCH: Final = 256


async def export_task(redis: Redis, task: TaskName) -> Backup:
    """Read a whole task. Raises ConfigError: no such task, or it was never folded."""
    keys = TaskKeys(task)
    pipe = redis.pipeline(transaction=True)
    pipe.hget(keys.checkpoint, "small")
    for key in (keys.arrays, keys.windows, keys.devices, keys.versions):
        pipe.hgetall(key)
    pipe.hget(keys.origin, "params")
    pipe.get(keys.manifest)
    pipe.time()
    small, arrays, windows, devices, versions, origin, manifest, now = await pipe.execute()
    if origin is None:
        raise no_such(task)
    if small is None:
        raise ConfigError("task", f"{task!r} was never folded; start the aggregator first")
    known, windows = _texts(devices), _texts(windows)
    backup = Backup(task, int(now[0]) * 1000, as_bytes(small), as_bytes(origin))
    state = backup.state
    if state.schema < SCHEMA:
        state, known = migrated(state, manifest, windows, known)
    names = _needed(state)
    blobs: Any = {name: await redis.get(keys.blob(name)) for name in names}
    if None in blobs.values():  # a version was swept meanwhile: there is a newer checkpoint
        return await export_task(redis, task)
    return Backup(
        task=task,
        made_ms=backup.made_ms,
        small=msgspec.json.encode(state),
        origin=backup.origin,
        arrays=_texts(arrays),
        windows=windows,
        devices=known,
        versions=_texts(versions),
        blobs=blobs,
        tail=await _tail(redis, keys.log, state.cursor),
    )


async def import_task(
    redis: Redis, task: TaskName, backup: Backup, *, unix_s: float, epoch: int | None = None
) -> int:
    """Bring a task back under a higher epoch, all of it or nothing; return the epoch.

    Raises:
        ConfigError: the task exists or is not cleared yet, or the epoch is not above the file's.
    """
    keys, state = TaskKeys(task), backup.state
    known = await fresh_epoch(redis, task, unix_s, last=state.epoch)
    number = check_epoch(known if epoch is None else epoch)
    if number <= state.epoch:
        remedy = f"{number} must be above {state.epoch}, the file's: devices ignore a lower one"
        raise ConfigError("epoch", remedy)
    await until_cleared(redis, task)
    small = msgspec.structs.replace(_without_diffs(state), living=(), kept=tuple(backup.blobs))
    pipe: Any
    async with redis.pipeline(transaction=True) as pipe:
        await pipe.watch(keys.origin, LEAVING)
        if await pipe.exists(keys.origin):
            remedy = f"{task!r} exists already; give --name, or delete it first"
            raise ConfigError("task", remedy)
        if await pipe.sismember(LEAVING, task):
            raise not_cleared(task)
        pipe.multi()
        pipe.delete(*keys.all)
        origin: Any = {"epoch": str(state.epoch), "params": backup.origin, "life": fresh_life()}
        pipe.hset(keys.origin, mapping=origin)
        pipe.hset(keys.checkpoint, mapping={"serial": "1", "small": msgspec.json.encode(small)})
        for key, mapping in _maps(keys, backup):
            for name, value in mapping.items():
                if key != keys.arrays or not is_half(name):
                    pipe.hset(key, name, value)
        for name, blob in backup.blobs.items():
            pipe.set(keys.blob(name), blob)
        cursor = EntryId.parse(state.cursor)
        _append_log(pipe, keys.log, backup, cursor=cursor, epoch=number, unix_s=unix_s)
        pipe.sadd(TASKS, task)
        try:
            await pipe.execute()
        except WatchError as exc:
            raise ConfigError(
                "task", f"{task!r} was created or deleted in this very moment"
            ) from exc
    return number


def _needed(state: SmallState) -> list[str]:
    """The blobs that make a task whole; diffs do not: it comes back under another epoch."""
    names = [name for release in state.releases for name in release.blobs]
    if state.lattice is not None and not state.lattice.drawn:
        names.append(state.lattice.name)
    if state.spec is not None and state.spec.bundle is not None:
        names.append(state.spec.bundle.blob)
    return list(dict.fromkeys(names))


def _without_diffs(state: SmallState) -> SmallState:
    """Begin the ladder anew: no diff from before leads on."""
    if state.lattice is None:
        return state
    newest = max(0, state.serial - 1)
    fresh = msgspec.structs.replace(state.lattice, first=newest, rungs=(), newest=NO_DIFFS)
    return msgspec.structs.replace(state, lattice=fresh)


def _maps(keys: TaskKeys, backup: Backup) -> list[tuple[str, Any]]:
    return [
        (keys.arrays, backup.arrays),
        (keys.windows, backup.windows),
        (keys.devices, backup.devices),
        (keys.versions, backup.versions),
    ]


def _append_log(
    pipe: Any, key: str, backup: Backup, *, cursor: EntryId, epoch: int, unix_s: float
) -> None:
    """What was not folded yet, under its own ids; and after it the new epoch."""
    last = cursor
    for entry_id, fields in backup.tail:
        pipe.xadd(key, dict(fields), id=entry_id)
        last = EntryId.parse(entry_id)
    now = EntryId(int(unix_s * 1000))
    follows = now if now > last else EntryId(last.ms, last.serial + 1)
    pipe.xadd(key, dict(to_fields(EpochSet(epoch))), id=str(follows))


async def _tail(redis: Redis, key: str, cursor: str) -> list[tuple[str, dict[bytes, bytes]]]:
    found: list[tuple[str, dict[bytes, bytes]]] = []
    while True:
        batch: Any = await redis.xrange(key, min=f"({cursor}", count=_BATCH)
        if not batch:
            return found
        found += [(as_bytes(entry_id).decode(), dict(fields)) for entry_id, fields in batch]
        cursor = found[-1][0]


def _texts(mapping: Any) -> dict[str, bytes]:
    return {key.decode(): value for key, value in mapping.items()}
