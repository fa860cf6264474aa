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

_ALIVE_LUA = """#!lua flags=allow-oom
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local function lease(member) return tonumber(string.match(member, ':(%d+) ')) or 0 end
redis.call('ZADD', KEYS[1], ms + lease(ARGV[1]), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ms)
local alive = {}
local all = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for i = 1, #all, 2 do
  if all[i + 1] - ms <= lease(all[i]) then
    table.insert(alive, all[i])
  else
    redis.call('ZREM', KEYS[1], all[i])
  end
end
return alive
"""
"""Who would be alive for longer than a lease was left there by a clock that was set back."""


class Peers:
    """The aggregators that were alive when they were last asked for.

    Args:
        token: of this process, ending in `:` and its lease in ms.
        tasks: the names it serves; empty: all.
    """

    def __init__(self, token: str, tasks: Collection[str]) -> None:
        self.token = token
        self._me = f"{token} {','.join(tasks)}"
        self._alive: tuple[str, ...] = (self._me,)

    async def say_alive(self, redis: Redis) -> None:
        """Renew one's own place for a lease, and learn of the others."""
        found: Any = await redis.eval(_ALIVE_LUA, 1, AGGREGATORS, self._me)
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
