"""A lease in Redis: a key with a time to live, whose value is its holder's token.

The token is compared for equality: that is the fence. It ends in `:` and the lease's own length in
ms: Redis' times to live follow the wall clock, so a lease that lasts longer than it was given was
left by a clock that was set back, and whoever waits for it shortens it. A full Redis must still be
able to say what makes room again: `allow-oom` (Redis 7, Valkey).
"""

import secrets
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

_HOLD_LUA: Final = """#!lua flags=allow-oom
if ARGV[3] ~= '' and not string.find(redis.call('INFO', 'server'), ARGV[3], 1, true) then
  return -1
end
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  local own = tonumber(string.match(holder, ':(%d+)$'))
  if own and redis.call('PTTL', KEYS[1]) > own then redis.call('PEXPIRE', KEYS[1], own) end
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

_RELEASE_LUA: Final = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class AnotherServerError(RedisError):
    """The server is another one than when the session began: what is remembered may be gone."""


def fresh_token(lease_s: float) -> str:
    """A token that nobody else has."""
    return f"{secrets.token_hex(16)}:{round(lease_s * 1000)}"


class Lease:
    """One lease, on one connection pool.

    Args:
        redis: a client for this session.
        key: whose value the token is.
        token: of this process, by `fresh_token`.
    """

    def __init__(self, redis: Redis, key: str, token: str) -> None:
        self._key = key
        self._token = token
        self._redis = redis
        self._hold = redis.register_script(_HOLD_LUA)
        self._release = redis.register_script(_RELEASE_LUA)

    async def hold(self, ttl_ms: int, *, run_id: str = "") -> bool:
        """Take or renew it; False while another holds it.

        Raises AnotherServerError: Redis has not this run_id (an empty one is not compared).
        """
        return _held(await self._hold(keys=[self._key], args=[self._token, ttl_ms, run_id]))

    async def hold_and_wait(
        self, ttl_ms: int, *, run_id: str, replicas: int, longest_ms: int
    ) -> tuple[bool, int]:
        """Renew it and wait until replicas have it, and all that was written before.

        Returns whether it is held, and how many replicas have it after `longest_ms` at the latest.
        WAIT speaks of what its own connection has written: so both go in one pipeline.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.eval(_HOLD_LUA, 1, self._key, self._token, str(ttl_ms), run_id)
        pipe.execute_command("WAIT", replicas, longest_ms)
        held, count = await pipe.execute()
        return _held(held), int(count)

    async def release(self) -> None:
        """Give it back, if it is still ours."""
        await self._release(keys=[self._key], args=[self._token])


def _held(answer: object) -> bool:
    if answer == -1:
        raise AnotherServerError("Redis is another server than before")
    return bool(answer)
