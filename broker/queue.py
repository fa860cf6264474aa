"""Redis as the bridge sees it: append to logs, read outboxes. Decides nothing."""

from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from broker.routing import Message, Present, Routed, Unroutable
from schemas.keys import LEAVING, LOST, TASKS, TaskKeys
from schemas.log import to_fields
from schemas.names import TaskName, is_name
from schemas.outbox import Record, from_fields
from schemas.streams import stream_pairs

LOST_KEPT: Final = 1000
"""Messages for no known task that are kept for people to look at."""

_LEASE_LUA: Final = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_SAID_LUA: Final = """
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


class Queue:
    """The post office's counter."""

    def __init__(self, redis: Redis, token: str) -> None:
        self._redis = redis
        self._token = token
        self._lease = redis.register_script(_LEASE_LUA)
        self._said = redis.register_script(_SAID_LUA)
        self._leave = redis.register_script(_LEAVE_LUA)

    async def append(self, messages: Sequence[Message]) -> list[bool]:
        """Append to the logs in order, in one round trip; False where there is no such task.

        When this returns, Redis has what it was given (durably, under appendfsync always). A
        transaction is synced once; without one Redis syncs as often as it reads, every 16 KiB.
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

    async def hold_downlink(self, task: TaskName, ttl_ms: int) -> bool:
        """Take or renew the lease on a task's downlink."""
        keys = [TaskKeys(task).downlink]
        return bool(await self._lease(keys=keys, args=[self._token, ttl_ms]))

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
        return bool(
            await self._said(
                keys=[keys.downlink, keys.said, keys.outbox], args=[self._token, entry_id]
            )
        )


def connect(url: str) -> Redis:
    """A client that raises at the first broken connection instead of trying again by itself."""
    return Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=10, socket_timeout=30
    )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
