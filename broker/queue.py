"""Redis as the bridge sees it: append to logs, read outboxes. Decides nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from broker.routing import Message, Present, Routed, Unroutable
from redis_session.lease import Lease
from schemas.keys import LEAVING, LOST, TASKS, TaskKeys
from schemas.log import to_fields
from schemas.names import TaskName, is_name
from schemas.outbox import Record, from_fields
from schemas.streams import stream_pairs
from schemas.watch import Pressure

LOST_KEPT: Final = 1000
"""Messages for no known task that are kept for people to look at."""

_SAID_LUA: Final = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('XTRIM', KEYS[3], 'MINID', ARGV[2])
return 1
"""


_PRESENT_LUA: Final = """
if redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 0 then return 0 end
local old = redis.call('HGET', KEYS[1], ARGV[2])
if old and string.sub(old, string.find(old, ' ') + 1) == ARGV[3] then return 0 end
local now = redis.call('TIME')
local ms = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
redis.call('HSET', KEYS[1], ARGV[2], ms .. ' ' .. ARGV[3])
return 1
"""

_LEAVE_LUA: Final = """
redis.call('SREM', KEYS[1], ARGV[1])
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
return 1
"""


AGAIN_KEPT_S: Final = 3600
"""How long an unheard wish to say everything again is kept."""

_FULL: Final = ("MISCONF", "NOREPLICAS", "OOM")


class QueueFullError(Exception):
    """Redis refuses to write: no memory, no disk, or too few replicas. Nothing was taken."""


class Queue:
    """The post office's counter. Begin with `begin`."""

    def __init__(self, redis: Redis, token: str) -> None:
        self._redis = redis
        self._token = token
        self._run_id = ""
        self.fsync = "always"
        self._said = redis.register_script(_SAID_LUA)
        self._leave = redis.register_script(_LEAVE_LUA)

    async def begin(self) -> None:
        """Learn which server this is, and when it syncs: `always`, `everysec`, `no` or `none`."""
        info: Any = await self._redis.info("server")
        self._run_id = str(info["run_id"])
        try:
            found: Any = await self._redis.config_get("append*", "no-appendfsync-on-rewrite")
        except ResponseError:
            return  # a managed server that does not tell: believe what the operator has set
        known = {_text(key): _text(value) for key, value in found.items()}
        self.fsync = "none" if known.get("appendonly") == "no" else known.get("appendfsync", "no")
        if self.fsync == "always" and known.get("no-appendfsync-on-rewrite") == "yes":
            self.fsync = "everysec"  # while it rewrites its file it does not sync at all

    async def persistence(self) -> Mapping[str, Any]:
        """What Redis tells of its disk."""
        found: Any = await self._redis.info("persistence")
        return dict(found)

    async def memory(self) -> tuple[int, int]:
        """How many bytes Redis uses of its `maxmemory`, and that; 0 for no bound."""
        found: Any = await self._redis.info("memory")
        apart = int(found.get("mem_not_counted_for_evict", 0))
        return int(found["used_memory"]) - apart, int(found.get("maxmemory", 0))

    async def log_bytes(self, task: TaskName) -> int:
        """What a task's log takes of Redis' memory, as Redis estimates it."""
        return int(await self._redis.memory_usage(TaskKeys(task).log) or 0)

    async def pressure(self, task: TaskName) -> Pressure:
        """What was noted of a task's pressure so far."""
        raw: Any = await self._redis.get(TaskKeys(task).pressure)
        return msgspec.json.decode(raw, type=Pressure) if raw else Pressure()

    async def note_pressure(self, task: TaskName, pressure: Pressure) -> None:
        """Note a task's pressure, for its metrics. Raises QueueFullError."""
        with _refusals():
            await self._redis.set(TaskKeys(task).pressure, msgspec.json.encode(pressure))

    async def append(self, messages: Sequence[Message]) -> list[bool]:
        """Append to the logs in order, in one round trip; False where there is no such task.

        When this returns, Redis has what it was given (durably, under appendfsync always). A
        transaction is synced once; without one Redis syncs as often as it reads, every 16 KiB.

        Raises QueueFullError: nothing was taken.
        """
        pipe = self._redis.pipeline(transaction=len(messages) > 1)
        for message in messages:
            match message:
                case Routed(task, arrived):
                    fields: dict[Any, Any] = dict(to_fields(arrived))
                    pipe.xadd(TaskKeys(task).log, fields, nomkstream=True)
                case Present(task, device, data):
                    keys = (TaskKeys(task).presence, TASKS)
                    pipe.eval(_PRESENT_LUA, len(keys), *keys, task, device, data)
                case Unroutable(topic, data):
                    fields = {b"topic": topic.encode(), b"p": data}
                    pipe.xadd(LOST, fields, maxlen=LOST_KEPT)
        with _refusals():
            return [entry_id is not None for entry_id in await pipe.execute()]

    async def bury(self, task: TaskName, message: Routed) -> None:
        """Keep a message for an unknown task where people can find it."""
        arrived = message.arrived
        head = {b"reason": b"unknown_task", b"task": task.encode(), b"d": arrived.device.encode()}
        fields: dict[Any, Any] = head | {b"p": arrived.data[:4096]}
        await self._redis.xadd(LOST, fields, maxlen=LOST_KEPT)

    async def tasks(self) -> list[TaskName]:
        """All tasks, sorted."""
        return await self._names(TASKS)

    async def leaving(self) -> list[TaskName]:
        """Deleted tasks whose last records are still to be carried out, sorted."""
        return await self._names(LEAVING)

    async def _names(self, key: str) -> list[TaskName]:
        names = [_text(member) for member in await self._redis.smembers(key)]
        return [TaskName(name) for name in sorted(names) if is_name(name)]

    async def leave(self, task: TaskName) -> None:
        """All that was retained of a deleted task is cleared: forget its outbox too."""
        keys = TaskKeys(task)
        await self._leave(keys=[LEAVING, keys.outbox, keys.said, keys.downlink], args=[task])

    def _lease(self, task: TaskName) -> Lease:
        return Lease(self._redis, TaskKeys(task).downlink, self._token)

    async def hold_downlink(self, task: TaskName, ttl_ms: int) -> bool:
        """Take or renew the lease on a task's downlink.

        Raises AnotherServerError, QueueFullError.
        """
        with _refusals():
            return await self._lease(task).hold(ttl_ms, run_id=self._run_id)

    async def hold_and_wait(
        self, task: TaskName, ttl_ms: int, *, replicas: int, longest_ms: int
    ) -> tuple[bool, int]:
        """Renew the lease and wait for replicas, as `Lease.hold_and_wait` does.

        Raises AnotherServerError, QueueFullError.
        """
        with _refusals():
            return await self._lease(task).hold_and_wait(
                ttl_ms, run_id=self._run_id, replicas=replicas, longest_ms=longest_ms
            )

    async def release_downlink(self, task: TaskName) -> None:
        """Give the lease on a task's downlink back, if it is still ours."""
        await self._lease(task).release()

    async def ask_again(self, task: TaskName) -> None:
        """Whoever carries the task's way down is to say once more what must be retained.

        A wish only: a full Redis does not take it, and nobody is told.
        """
        with suppress(QueueFullError), _refusals():
            await self._redis.set(TaskKeys(task).again, "1", ex=AGAIN_KEPT_S)

    async def is_asked_again(self, task: TaskName) -> bool:
        """Whether that was asked, since the last look."""
        return bool(await self._redis.delete(TaskKeys(task).again))

    async def standing(self, task: TaskName) -> tuple[list[tuple[str, bytes]], dict[str, int]]:
        """What must be retained now: (suffix, payload) pairs, and blobs with their chunk size."""
        keys = TaskKeys(task)
        blobs: Any = await self._redis.hgetall(keys.blobs)
        values: Any = await self._redis.mget(keys.spec, keys.manifest, keys.metrics)
        others: Any = await self._redis.hgetall(keys.standing)
        named = zip(("spec", "model", "metrics"), values, strict=True)
        says = [(suffix, payload) for suffix, payload in named if payload is not None]
        says += [(_text(suffix), payload) for suffix, payload in sorted(others.items())]
        return says, {_text(name): int(size) for name, size in blobs.items()}

    async def blob(self, task: TaskName, name: str) -> bytes | None:
        """The bytes of a blob; None when it was swept."""
        found: Any = await self._redis.get(TaskKeys(task).blob(name))
        return found if isinstance(found, bytes) else None

    async def spec(self, task: TaskName) -> bytes | None:
        """A task's specification as it was published; None: there is none."""
        found: Any = await self._redis.get(TaskKeys(task).spec)
        return found if isinstance(found, bytes) else None

    async def blobs(self, task: TaskName, names: Sequence[str], *, most: int) -> list[bytes] | None:
        """The bytes of some blobs; None when one is missing, or they are more than `most` bytes."""
        keys = [TaskKeys(task).blob(name) for name in names]
        pipe = self._redis.pipeline(transaction=False)
        for key in keys:
            pipe.strlen(key)
        sizes: list[int] = await pipe.execute()
        if not all(sizes) or sum(sizes) > most:
            return None
        found: Any = await self._redis.mget(keys)
        return None if None in found else list(found)

    async def unsaid(
        self, task: TaskName, after: str, *, count: int, block_ms: int
    ) -> list[tuple[str, Record]]:
        """Outbox records after an id, waiting up to `block_ms` for the first."""
        key = TaskKeys(task).outbox
        answer: Any = await self._redis.xread({key: after}, count=count, block=block_ms)
        pairs = stream_pairs(answer)
        return [(_text(entry_id), from_fields(fields)) for entry_id, fields in pairs]

    async def last_said(self, task: TaskName) -> str:
        """The id of the last record that was carried out."""
        found = await self._redis.get(TaskKeys(task).said)
        return "0-0" if found is None else _text(found)

    async def note_said(self, task: TaskName, entry_id: str) -> bool:
        """Remember how far the outbox was carried out and trim it; False without the lease."""
        keys = TaskKeys(task)
        with _refusals():
            done = await self._said(
                keys=[keys.downlink, keys.said, keys.outbox], args=[self._token, entry_id]
            )
        return bool(done)


@contextmanager
def _refusals() -> Iterator[None]:
    """What Redis refuses because it is full, by its own name."""
    try:
        yield
    except ResponseError as exc:
        word = str(exc).partition(" ")[0]
        if isinstance(exc, OutOfMemoryError) or word in _FULL:
            raise QueueFullError(str(exc)) from exc
        raise


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
