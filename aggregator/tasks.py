"""What people do to a task, and what they see of it: the shell behind `fedmq task` and its like.

Nothing is changed here but by an entry in the log (a task's birth and death aside): the aggregator
folds it like any other, and what depends on it depends on the log.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Final

import msgspec
import numpy as np
from redis.asyncio import Redis

from aggregator.bundles import reference_for
from aggregator.checkpoint import (
    SmallState,
    device_from_bytes,
    read_small_state,
    vector_from_bytes,
    vector_to_bytes,
)
from aggregator.state import DeviceRecord
from aggregator.store import as_bytes, pack_for_lua
from schemas.delta import peak
from schemas.errors import ConfigError, InvariantError
from schemas.initial import initial_params
from schemas.keys import EPOCHS, LEAVING, TASKS, TaskKeys
from schemas.log import Body, EntryId, SpecSet, from_fields, to_fields
from schemas.messages import Manifest
from schemas.names import DeviceId, TaskName, is_name
from schemas.outbox import End, Record, Say, Sweep
from schemas.outbox import to_fields as record_fields
from schemas.params import Params, model_digest
from schemas.short import FRAME_EPOCHS
from schemas.task import InitOptions, TaskSpec, checked_spec, spec_from_json, spec_to_json

EPOCH_HOURS: Final = 4
EPOCH_ZERO_S: Final = 1_767_225_600  # 2026-01-01T00:00:00Z

_CREATE_LUA: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 'exists' end
if redis.call('SISMEMBER', KEYS[4], ARGV[4]) == 1 then return 'leaving' end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'params', ARGV[2], 'life', ARGV[5])
redis.call('XADD', KEYS[2], '*', unpack(cmsgpack.unpack(ARGV[3])))
redis.call('SADD', KEYS[3], ARGV[4])
if KEYS[5] then redis.call('SET', KEYS[5], ARGV[6]) end
return 'created'
"""


CLEARED_S: Final = 5.0
"""How long a new task waits for the bridge that clears the topics of the old one of its name."""


def check_epoch(epoch: int) -> int:
    """Raises ConfigError."""
    if not 1 <= epoch <= 0xFFFF:
        raise ConfigError("epoch", f"{epoch} must be 1 to 65535")
    return epoch


def fresh_life() -> str:
    """Name one life of a task: what a deleted one left behind must not write into the next."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A published model: its manifest and its parameters, float32, shape (size,)."""

    manifest: Manifest
    params: Params


def epoch_at(unix_s: float) -> int:
    """The epoch of a task created now: 4-hour steps since 2026, so it rises without memory.

    A task that is created again after Redis was lost gets a higher epoch by itself, unless that
    happens within the same four hours; then say `--epoch`. 16 bits last until 2055.
    """
    return max(1, int(unix_s - EPOCH_ZERO_S) // (3600 * EPOCH_HOURS))


async def create_task(
    redis: Redis,
    task: TaskName,
    spec: TaskSpec,
    params: Params,
    *,
    epoch: int,
    bundle: bytes | None = None,
) -> None:
    """Create a task: its origin, the first entry of its log, and its packed bundle, if it has one.

    Raises:
        ConfigError: the task exists or is not cleared yet, the epoch or the bundle does not fit.
    """
    check_epoch(epoch)
    ref = await reference_for(spec, bundle)
    spec = checked_spec(msgspec.structs.replace(spec, bundle=ref))
    if params.size != spec.params.size:
        remedy = f"has {params.size} parameters, the specification {spec.params.size}"
        raise ConfigError("init", remedy)
    if not isfinite(peak(params)):
        raise ConfigError("init", "holds NaN or infinity; nothing can be trained from it")
    if spec.init is not None and not _draws(spec, spec.init, params):
        spec = msgspec.structs.replace(spec, init=None)

    keys = TaskKeys(task)
    entry = [part for pair in to_fields(SpecSet(spec_to_json(spec))).items() for part in pair]
    names = [keys.origin, keys.log, TASKS, LEAVING]
    values: list[int | str | bytes] = [epoch, vector_to_bytes(params), pack_for_lua(entry)]
    values += [task, fresh_life()]
    if ref is not None and bundle is not None:
        names.append(keys.blob(ref.blob))
        values.append(bundle)
    await until_cleared(redis, task)
    done = as_bytes(await redis.eval(_CREATE_LUA, len(names), *names, *values))
    if done == b"exists":
        raise ConfigError("task", f"{task!r} exists already; choose another name")
    if done == b"leaving":
        raise not_cleared(task)


def _draws(spec: TaskSpec, init: InitOptions, params: Params) -> bool:
    """Whether devices find these parameters themselves."""
    rng = np.random.Generator(np.random.PCG64(init.seed))
    return vector_to_bytes(initial_params(spec.params, init, rng)) == vector_to_bytes(params)


async def until_cleared(redis: Redis, task: TaskName) -> None:
    """Wait until a bridge has cleared the topics of a deleted task. Raises ConfigError."""
    try:
        async with asyncio.timeout(CLEARED_S):
            while await redis.sismember(LEAVING, task):  # noqa: ASYNC110 - a bridge does it
                await asyncio.sleep(0.05)
    except TimeoutError as exc:
        raise not_cleared(task) from exc


def not_cleared(task: TaskName) -> ConfigError:
    """What to say of a name whose last task has not quite gone."""
    remedy = (
        "was deleted, and no bridge has cleared its topics yet: start one, or take another name"
    )
    return ConfigError("task", f"{task!r} {remedy}")


async def fresh_epoch(redis: Redis, task: TaskName, unix_s: float, *, last: int = 0) -> int:
    """An epoch above every one that this task has had here, and above `last`.

    A radio's frame tells only how an epoch ends: it must not take this one for one of those.
    """
    buried: Any = await redis.hget(EPOCHS, task)
    known = [each for each in (int(buried or 0), last) if each]
    number = max(epoch_at(unix_s), *(each + 1 for each in known), 1)
    while any((number - each) % FRAME_EPOCHS == 0 for each in known):
        number += 1
    return number


async def append_entry(redis: Redis, task: TaskName, body: Body) -> EntryId:
    """Write into a task's log. Raises ConfigError: there is no such task."""
    fields: dict[Any, Any] = dict(to_fields(body))
    found: Any = await redis.xadd(TaskKeys(task).log, fields, nomkstream=True)
    if found is None:
        raise no_such(task)
    return EntryId.parse(as_bytes(found))


async def folded_until(redis: Redis, task: TaskName, entry: EntryId, *, patience_s: float) -> bool:
    """Wait until an entry was folded and committed; False when nobody does that in time."""
    key = TaskKeys(task).checkpoint
    try:
        async with asyncio.timeout(patience_s):
            while True:
                raw = await redis.hget(key, "small")
                if raw and EntryId.parse(msgspec.json.decode(raw)["cursor"]) >= entry:
                    return True
                await asyncio.sleep(0.05)
    except TimeoutError:
        return False


def no_such(task: TaskName) -> ConfigError:
    """What to say of a task that nobody knows."""
    return ConfigError("task", f"{task!r} does not exist; fedmq task list shows those that do")


# -- looking -------------------------------------------------------------------------------


async def all_tasks(redis: Redis) -> list[TaskName]:
    """All tasks, sorted."""
    names = [as_bytes(member).decode() for member in await redis.smembers(TASKS)]
    return [TaskName(name) for name in sorted(names) if is_name(name)]


async def last_commit(redis: Redis, task: TaskName) -> SmallState:
    """A task as the last commit left it. Raises ConfigError: no such task, or none yet."""
    found = await commit_if_any(redis, task)
    if found is None:
        remedy = f"{task!r} was never folded; is the aggregator running?"
        raise ConfigError("task", remedy)
    return found


async def commit_if_any(redis: Redis, task: TaskName) -> SmallState | None:
    """The same; None before the first commit. Raises ConfigError: no such task."""
    keys = TaskKeys(task)
    raw = await redis.hget(keys.checkpoint, "small")
    if raw is not None:
        return read_small_state(as_bytes(raw))
    if not await redis.exists(keys.origin):
        raise no_such(task)
    return None


async def published_model(redis: Redis, task: TaskName) -> PublishedModel | None:
    """The newest published model, verified; None before the first publication."""
    if not await redis.exists(TaskKeys(task).checkpoint):
        return None
    small = await last_commit(redis, task)
    published = [r.version for r in small.releases if r.status == "published"]
    if not published:
        return None
    try:
        return await kept_model(redis, task, max(published))
    except ConfigError:  # swept between the two reads: the next one is already there
        return await published_model(redis, task)


async def kept_model(redis: Redis, task: TaskName, version: int) -> PublishedModel:
    """One version, verified. Raises ConfigError when it is kept no longer, or never was."""
    small = await last_commit(redis, task)
    found = {release.version: release for release in small.releases}
    blob: Any = None
    if version in found:
        blob = await redis.get(TaskKeys(task).blob(found[version].params_blob))
    if blob is None:
        kept = ", ".join(map(str, sorted(found))) or "none yet"
        remedy = f"{version} is not kept (there are {kept}); publish.keep says how many are"
        raise ConfigError("version", remedy)
    manifest = found[version].named
    params = vector_from_bytes(blob)
    if small.spec is None or not _proves(manifest, small.spec, params):
        msg = f"blob {found[version].params_blob} does not have the digest of its manifest"
        raise InvariantError(msg)
    return PublishedModel(manifest, params)


def _proves(manifest: Manifest, spec: TaskSpec, params: Params) -> bool:
    """Whether a manifest tells of these parameters; it may tell only the beginning of a digest."""
    return model_digest(spec.params.digest, params).startswith(manifest.model_digest)


async def task_spec(redis: Redis, task: TaskName) -> TaskSpec | None:
    """The specification that holds at the end of the log; None when there is no such task."""
    keys = TaskKeys(task)
    spec, cursor = None, "0-0"
    raw = await redis.hget(keys.checkpoint, "small")
    if raw is not None:
        small = read_small_state(as_bytes(raw))
        spec, cursor = small.spec, small.cursor
    async for _, fields in _entries(redis, keys.log, cursor):
        if fields.get(b"k") == b"spec":
            entry = from_fields(fields)
            assert isinstance(entry, SpecSet)  # noqa: S101 - its kind says so
            spec = spec_from_json(entry.json)
    return spec


async def task_status(redis: Redis, task: TaskName) -> dict[str, object] | None:
    """What `fedmq task show` prints: metrics, and how much of the log is not folded yet."""
    keys = TaskKeys(task)
    if not await redis.exists(keys.origin):
        return None
    raw = await redis.get(keys.metrics)
    status: dict[str, object] = {"task": task}
    status |= msgspec.json.decode(raw) if raw else {"version": None}
    status["updates_stored"] = await unfolded(redis, task)
    status["dead_letters"] = await redis.xlen(keys.dead)
    return status


async def version_records(redis: Redis, task: TaskName) -> list[dict[str, Any]]:
    """Every version that was ever proposed, oldest first, as far as records are kept."""
    raw: Any = await redis.hgetall(TaskKeys(task).versions)
    return [msgspec.json.decode(raw[key]) for key in sorted(raw, key=int)]


async def device_records(redis: Redis, task: TaskName) -> dict[DeviceId, DeviceRecord]:
    """Every device that the log knows, by name."""
    raw: Any = await redis.hgetall(TaskKeys(task).devices)
    return {DeviceId(key.decode()): device_from_bytes(raw[key]) for key in sorted(raw)}


async def presences(redis: Redis, task: TaskName) -> dict[DeviceId, tuple[int, bytes]]:
    """The last birth or will of every device: (milliseconds since 1970, JSON)."""
    raw: Any = await redis.hgetall(TaskKeys(task).presence)
    found: dict[DeviceId, tuple[int, bytes]] = {}
    for name, value in raw.items():
        ms, _, payload = value.partition(b" ")
        found[DeviceId(name.decode())] = int(ms), payload
    return found


async def unfolded(redis: Redis, task: TaskName) -> int:
    """Updates in the log after the cursor of the last commit."""
    keys = TaskKeys(task)
    small = await redis.hget(keys.checkpoint, "small")
    cursor = msgspec.json.decode(small)["cursor"] if small else "0-0"
    total = 0
    async for _, fields in _entries(redis, keys.log, cursor):
        total += fields.get(b"k") == b"up"
    return total


async def _entries(
    redis: Redis, key: str, after: str
) -> AsyncIterator[tuple[EntryId, Mapping[bytes, bytes]]]:
    """The entries of a stream after an id, in order."""
    while True:
        batch: Any = await redis.xrange(key, min=f"({after}", count=256)
        if not batch:
            return
        for entry_id, fields in batch:
            yield EntryId.parse(entry_id), fields
        after = as_bytes(batch[-1][0]).decode()


# -- forgetting ----------------------------------------------------------------------------


async def delete_task(redis: Redis, task: TaskName) -> None:
    """Delete all of a task but its last epoch; a bridge then clears its retained topics.

    Raises ConfigError: there is no such task.
    """
    keys = TaskKeys(task)
    epoch: Any = await redis.hget(keys.origin, "epoch")
    if epoch is None:
        raise no_such(task)
    raw = await redis.hget(keys.checkpoint, "small")
    small = read_small_state(as_bytes(raw)) if raw else None
    devices = {*await device_records(redis, task), *await presences(redis, task)}
    blobs: Any = [key async for key in redis.scan_iter(match=_literal(keys.blob("")) + "*")]
    pipe = redis.pipeline(transaction=True)
    pipe.srem(TASKS, task)
    pipe.hset(EPOCHS, task, str(small.epoch if small else int(epoch)))
    pipe.delete(*keys.all, *blobs)
    for record in _farewell(small, devices):
        fields: dict[Any, Any] = dict(record_fields(record))
        pipe.xadd(keys.outbox, fields)
    pipe.sadd(LEAVING, task)
    await pipe.execute()


def _literal(text: str) -> str:
    """A name as a glob pattern that matches itself."""
    return "".join(f"[{c}]" if c in "[]?*" else c for c in text)


def _farewell(small: SmallState | None, devices: set[DeviceId]) -> list[Record]:
    """Clear every retained topic of a task, the manifest first: nobody begins to fetch."""
    everywhere = ("model", "candidate", "spec", "versions", "metrics", "busy", "pace")
    records: list[Record] = [Say(suffix, b"", retain=True) for suffix in everywhere]
    for device in sorted(devices):
        own = (f"receipt/{device}", f"state/{device}", f"model/{device}")
        records += [Say(suffix, b"", retain=True) for suffix in own]
    records += [Sweep(blob.name, blob.chunks) for blob in (small.living if small else ())]
    return [*records, End()]


async def erase_traces(redis: Redis, task: TaskName, device: DeviceId, until: EntryId) -> int:
    """Delete what a device has sent, up to an entry that was folded: log and dead letters.

    Returns how many entries went. Call it after a `DeviceErased` was folded.
    """
    keys = TaskKeys(task)
    gone = 0
    for key in (keys.log, keys.dead):
        mine = [
            str(entry_id)
            async for entry_id, fields in _entries(redis, key, "0-0")
            if entry_id <= until and fields.get(b"d") == device.encode()
        ]
        for start in range(0, len(mine), 256):
            gone += await redis.xdel(key, *mine[start : start + 256])
    await redis.hdel(keys.presence, device)
    return gone
