"""One client for one session: it raises at the first broken connection, and never tries by itself.

redis-py repeats commands silently, and reconnects silently to a server that was emptied or is
another one. Nothing here does: whoever uses the client ends its session and begins a new one.
"""

from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from redis_session.address import Watched, watched

CONNECT_S: Final = 10.0
SILENCE_S: Final = 15.0
"""How long a server may be silent in mid-answer before its connection counts as broken."""

ASKING_S: Final = 2.0
"""How long one Sentinel has to answer before the next is asked."""


class WatchedRedis(Redis):
    """A client of whichever server is the primary now; each new connection asks again."""

    def __init__(self, address: Watched) -> None:
        self._service = address.service
        self._sentinels = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it untyped
            address.sentinels,
            sentinel_kwargs={
                "socket_connect_timeout": ASKING_S,
                "socket_timeout": ASKING_S,
                "retry": Retry(NoBackoff(), 0),
            },
        )
        primary: Redis = self._sentinels.master_for(
            address.service,
            db=address.db,
            username=address.user or None,
            password=address.password or None,
            ssl=address.tls,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_S,
            socket_timeout=SILENCE_S,
        )
        super().__init__(connection_pool=primary.connection_pool)
        self.auto_close_connection_pool = True

    async def failovers(self) -> int:
        """How often the primary has been replaced: Sentinel's config-epoch, the highest told.

        Raises RedisError when no Sentinel answers.
        """
        found: list[int] = []
        for sentinel in self._sentinels.sentinels:
            try:
                state = await sentinel.sentinel_master(self._service)
            except RedisError:
                continue
            if isinstance(state, dict):
                found.append(int(state["config-epoch"]))
        if not found:
            msg = "no Sentinel answers"
            raise RedisConnectionError(msg)
        return max(found)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:  # noqa: FBT001 - as there
        """Close the connections to the servers, and those to the Sentinels."""
        await super().aclose(close_connection_pool)
        for sentinel in self._sentinels.sentinels:
            await sentinel.aclose()


def connect(url: str) -> Redis:
    """A client for one session. Raises ConfigError or ValueError for a URL that cannot be read."""
    address = watched(url)
    if address is not None:
        return WatchedRedis(address)
    return Redis.from_url(
        url,
        retry=Retry(NoBackoff(), 0),
        socket_connect_timeout=CONNECT_S,
        socket_timeout=SILENCE_S,
    )


async def reached(redis: Redis) -> None:
    """Open the first connection. Not to be cancelled half way: redis-py would leave it open."""
    await redis.ping()


async def failovers(redis: Redis) -> int | None:
    """How often the primary has been replaced; None where nobody counts that."""
    return await redis.failovers() if isinstance(redis, WatchedRedis) else None
