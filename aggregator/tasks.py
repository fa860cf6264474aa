"""What people do to tasks: create, look, pull. The shell behind `fedmq task` and `fedmq model`."""

from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from typing import Any, Final

import msgspec
from redis.asyncio import Redis

from aggregator.checkpoint import vector_from_bytes, vector_to_bytes
from aggregator.store import as_bytes, pack_for_lua
from schemas.delta import peak
from schemas.errors import ConfigError, InvariantError
from schemas.keys import TASKS, TaskKeys
from schemas.log import SpecSet, from_fields, to_fields
from schemas.messages import Manifest
from schemas.names import TaskName
from schemas.params import Params
from schemas.task import TaskSpec, spec_from_json, spec_to_json
from schemas.wire import decode_manifest

EPOCH_HOURS: Final = 4
EPOCH_ZERO_S: Final = 1_767_225_600  # 2026-01-01T00:00:00Z

_CREATE_LUA: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'params', ARGV[2])
redis.call('XADD', KEYS[2], '*', unpack(cmsgpack.unpack(ARGV[3])))
redis.call('SADD', KEYS[3], ARGV[4])
return 1
"""


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """The newest published model: its manifest and its parameters."""

    manifest: Manifest
    params: Params


def epoch_at(unix_s: float) -> int:
    """The epoch of a task created now: 4-hour steps since 2026, so it rises without memory.

    A task that is created again after Redis was lost gets a higher epoch by itself, unless that
    happens within the same four hours; then say `--epoch`. 16 bits last until 2055.
    """
    return max(1, int(unix_s - EPOCH_ZERO_S) // (3600 * EPOCH_HOURS))


async def create_task(
    redis: Redis, task: TaskName, spec: TaskSpec, params: Params, *, epoch: int
) -> None:
    """Create a task: its origin and the first entry of its log.

    Raises:
        ConfigError: the task exists, or the epoch does not fit.
    """
    if not 1 <= epoch <= 0xFFFF:
        raise ConfigError("epoch", f"{epoch} must be 1 to 65535")
    if params.size != spec.params.size:
        remedy = f"has {params.size} parameters, the specification {spec.params.size}"
        raise ConfigError("init", remedy)
    if not isfinite(peak(params)):
        raise ConfigError("init", "holds NaN or infinity; nothing can be trained from it")

    keys = TaskKeys(task)
    entry = [part for pair in to_fields(SpecSet(spec_to_json(spec))).items() for part in pair]
    names = (keys.origin, keys.log, TASKS)
    values = (epoch, vector_to_bytes(params), pack_for_lua(entry), task)
    created: Any = await redis.eval(_CREATE_LUA, len(names), *names, *values)
    if not created:
        raise ConfigError("task", f"{task!r} exists already; choose another name")


async def published_model(redis: Redis, task: TaskName) -> PublishedModel | None:
    """The newest published model, verified; None before the first publication."""
    keys = TaskKeys(task)
    raw = await redis.get(keys.manifest)
    if raw is None:
        return None
    manifest = decode_manifest(as_bytes(raw))
    found = await redis.get(keys.blob(manifest.blob))
    if found is None:  # swept between the two reads: the next manifest is already there
        return await published_model(redis, task)
    blob = as_bytes(found)
    if sha256(blob).digest() != manifest.blob_digest:
        msg = f"blob {manifest.blob} does not have the digest of its manifest"
        raise InvariantError(msg)
    return PublishedModel(manifest, vector_from_bytes(blob))


async def task_spec(redis: Redis, task: TaskName) -> TaskSpec | None:
    """The specification that was folded last; before any was, the one the task begins with."""
    keys = TaskKeys(task)
    raw = await redis.get(keys.spec)
    if raw is not None:
        return spec_from_json(as_bytes(raw))
    first: Any = await redis.xrange(keys.log, count=1)
    entry = from_fields(first[0][1]) if first else None
    return spec_from_json(entry.json) if isinstance(entry, SpecSet) else None


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


async def unfolded(redis: Redis, task: TaskName) -> int:
    """Updates in the log after the cursor of the last commit."""
    keys = TaskKeys(task)
    small = await redis.hget(keys.checkpoint, "small")
    cursor = msgspec.json.decode(small)["cursor"] if small else "0-0"
    total = 0
    while True:
        entries: Any = await redis.xrange(keys.log, min=f"({cursor}", count=256)
        if not entries:
            return total
        total += sum(fields.get(b"k") == b"up" for _, fields in entries)
        cursor = as_bytes(entries[-1][0]).decode()
