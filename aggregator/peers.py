"""Who else aggregates: every process says in Redis that it is alive, and for which tasks.

Decides only whether a task should be somebody else's. The lease on the task is what counts: here
two may be wrong about each other for a moment, and nothing is folded twice.
"""

from collections.abc import Collection
from typing import Any

from redis.asyncio import Redis

from aggregator.sharing import preferred
from schemas.keys import AGGREGATORS
from schemas.names import TaskName

_ALIVE_LUA = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
redis.call('ZADD', KEYS[1], ms + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms)
return redis.call('ZRANGE', KEYS[1], 0, -1)
"""


class Peers:
    """The aggregators that were alive when they were last asked for.

    Args:
        token: of this process.
        tasks: the names it serves; empty: all.
    """

    def __init__(self, token: str, tasks: Collection[str]) -> None:
        self.token = token
        self._me = f"{token} {','.join(tasks)}"
        self._alive: tuple[str, ...] = (self._me,)

    async def say_alive(self, redis: Redis, ttl_ms: int) -> None:
        """Renew one's own place, and learn of the others."""
        found: Any = await redis.eval(_ALIVE_LUA, 1, AGGREGATORS, self._me, str(ttl_ms))
        self._alive = tuple(member.decode() for member in found)

    async def say_goodbye(self, redis: Redis) -> None:
        """Give one's place up: the others need not wait."""
        await redis.zrem(AGGREGATORS, self._me)

    def mine(self, task: TaskName) -> bool:
        """Whether nobody alive should rather hold the task."""
        able: list[str] = []
        for member in self._alive:
            token, _, tasks = member.partition(" ")
            if not tasks or task in tasks.split(","):
                able.append(token)
        return preferred(task, able) in {None, self.token}
