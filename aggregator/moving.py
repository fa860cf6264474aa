"""A task out of Redis into a file, and back: the shell of `fedmq task export` and `import`.

An export is one consistent cut: the checkpoint and what it belongs to in one transaction, then the
log after its cursor, which only grows. An import is one transaction: a task that is whole, or none.
It ends its log with an entry that raises the epoch: what the restored log has forgotten is never
mistaken for what it knows, and every device fetches the model again by itself.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import WatchError

from aggregator.archive import Backup
from aggregator.bundles import bundle_bytes
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
from schemas.bundle import BundleRef
from schemas.errors import ConfigError, InvariantError
from schemas.keys import LEAVING, TASKS, TaskKeys
from schemas.log import EntryId, EpochSet, to_fields
from schemas.names import TaskName

_BATCH: Final = 256

_CUTS_MAX: Final = 16
"""Times that a task is read anew because a version was swept in between: a server sweeps one when
it publishes one, and reading takes less."""


async def export_task(redis: Redis, task: TaskName) -> Backup:
    """Read a whole task.

    Raises:
        ConfigError: no such task, it was never folded, or what it needs is not in Redis.
    """
    missing: list[str] = []
    for _ in range(_CUTS_MAX):
        cut, missing = await _cut(redis, task)
        if not missing:
            return cut
    remedy = f"{task!r} lacks {', '.join(missing)} in Redis; is it another server's, or damaged?"
    raise ConfigError("task", f"{remedy} Import an earlier export")


async def _cut(redis: Redis, task: TaskName) -> tuple[Backup, list[str]]:
    """The task as it is now, and the names of the blobs that have gone meanwhile."""
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
    found: Any = {name: await redis.get(keys.blob(name)) for name in _versions_of(state)}
    missing = [name for name, blob in found.items() if blob is None]
    blobs = {name: blob for name, blob in found.items() if blob is not None}
    if (ref := _bundle_of(state)) is not None:  # it is never swept
        try:
            blobs[ref.blob] = await bundle_bytes(redis, task, ref)
        except InvariantError as exc:
            raise ConfigError("bundle", f"{exc}: import an earlier export") from exc
    whole = Backup(
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
    return whole, missing


async def import_task(
    redis: Redis, task: TaskName, backup: Backup, *, unix_s: float, epoch: int | None = None
) -> int:
    """Bring a task back under a higher epoch, all of it or nothing; return the epoch.

    Raises:
        ConfigError: the task exists or is not cleared yet, the epoch is not above the file's, or
            the file lacks a version or the bundle that the task needs.
    """
    keys, state = TaskKeys(task), backup.state
    _check_whole(state, backup.blobs)
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


def _check_whole(state: SmallState, blobs: Mapping[str, bytes]) -> None:
    """Refuse a file that lacks what its task needs, or that holds another bundle."""
    ref = _bundle_of(state)
    needed = _versions_of(state) + ([] if ref is None else [ref.blob])
    if lacking := [name for name in needed if name not in blobs]:
        told = f"lacks {', '.join(lacking)}, which its task needs"
        raise ConfigError("file", f"{told}; nothing was changed, take another copy")
    if ref is not None and sha256(blobs[ref.blob]).hexdigest() != ref.digest:
        told = f"holds a bundle {ref.blob} that is not the one its task names"
        raise ConfigError("file", f"{told}; nothing was changed, take another copy")


def _bundle_of(state: SmallState) -> BundleRef | None:
    return None if state.spec is None else state.spec.bundle


def _versions_of(state: SmallState) -> list[str]:
    """The blobs that make a task whole but its bundle.

    Diffs do not belong to it: it comes back under another epoch.
    """
    names = [name for release in state.releases for name in release.blobs]
    if state.lattice is not None and not state.lattice.drawn:
        names.append(state.lattice.name)
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
