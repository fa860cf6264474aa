"""A task's training bundle in Redis: checked before it is stored, and read again.

It lies there as a blob from the task's birth to its end. What devices fetch is this very blob.
"""

import asyncio
from hashlib import sha256
from typing import Any

from redis.asyncio import Redis

from schemas.bundle import Bundle, BundleRef, read_bundle, ref_of
from schemas.errors import ConfigError, InvariantError
from schemas.keys import TaskKeys
from schemas.names import TaskName
from schemas.task import TaskSpec


async def reference_for(spec: TaskSpec, bundle: bytes | None) -> BundleRef | None:
    """What a new task's specification says of its bundle.

    Raises:
        ConfigError: it is no bundle, of other tensors, or not the one that the specification names.
    """
    if bundle is None:
        if spec.bundle is not None:
            raise ConfigError("bundle", "is named by the specification, and its bytes are missing")
        return None
    try:
        read = await asyncio.to_thread(read_bundle, bundle)
    except ValueError as exc:
        raise ConfigError("bundle", f"{exc}") from exc
    if read.manifest.params != spec.params:
        raise ConfigError("params", "are not the bundle's; leave them out, it names them itself")
    told = spec.bundle
    chunk_bytes = spec.publish.chunk_bytes if told is None else told.chunk_bytes
    ref = ref_of(bundle, chunk_bytes)
    if told not in {None, ref}:
        raise ConfigError("bundle", "is another one than the specification names")
    return ref


async def bundle_bytes(redis: Redis, task: TaskName, ref: BundleRef) -> bytes:
    """The packed bundle of a task. Raises InvariantError: it is gone, or was altered."""
    found: Any = await redis.get(TaskKeys(task).blob(ref.blob))
    if not isinstance(found, bytes) or sha256(found).hexdigest() != ref.digest:
        msg = f"the bundle {ref.blob} of {task} is not in Redis as it was stored"
        raise InvariantError(msg)
    return found


async def task_bundle(redis: Redis, task: TaskName, spec: TaskSpec) -> Bundle | None:
    """The bundle of a task, read; None when it has none. Raises InvariantError."""
    if spec.bundle is None:
        return None
    return await asyncio.to_thread(read_bundle, await bundle_bytes(redis, task, spec.bundle))
