"""What is kept of a task stays within its bounds, and what was not folded stays."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import servers
from redis.asyncio import Redis

from aggregator.settings import AggregatorSettings
from aggregator.store import TaskStore
from redis_session.connection import connect
from schemas.keys import TaskKeys
from schemas.log import EntryId
from schemas.names import TaskName

KEYS = TaskKeys(TaskName("kept"))
NOTHING = {"log_keep_s": 0, "log_keep_bytes": 0, "dead_keep_s": 0, "dead_keep_bytes": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis_server(Path(tmp_path_factory.mktemp("retention"))) as server:
        yield server


@pytest.fixture
async def redis(server: servers.Server) -> AsyncIterator[Redis]:
    async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
        await redis.flushall()
        yield redis


async def filled(redis: Redis, key: str, first_ms: int) -> None:
    for number in range(300):
        await redis.xadd(key, {b"p": bytes(1000)}, id=f"{first_ms + number}-0")


async def tidy(redis: Redis, cursor: EntryId, **bounds: float) -> None:
    settings = AggregatorSettings(**(NOTHING | bounds))  # type: ignore[arg-type]
    await TaskStore(redis, KEYS, "token").tidy(cursor, settings)


async def oldest(redis: Redis, key: str) -> int:
    ((entry_id, _),) = await redis.xrange(key, count=1)
    return EntryId.parse(entry_id).ms


async def test_the_log_shrinks_to_its_bound_from_the_oldest_on(redis) -> None:
    await filled(redis, KEYS.log, 1)
    await tidy(redis, EntryId(300), log_keep_bytes=100_000)
    assert await redis.memory_usage(KEYS.log) <= 100_000
    assert 200 <= await oldest(redis, KEYS.log) <= 270


async def test_what_was_not_folded_stays_whatever_the_bound(redis) -> None:
    await filled(redis, KEYS.log, 1)
    await tidy(redis, EntryId(100), log_keep_bytes=1)
    assert await oldest(redis, KEYS.log) == 101
    assert await redis.xlen(KEYS.log) == 200


async def test_without_bounds_everything_stays(redis) -> None:
    await filled(redis, KEYS.log, 1)
    await filled(redis, KEYS.dead, 1)
    await tidy(redis, EntryId(300))
    assert await redis.xlen(KEYS.log) == await redis.xlen(KEYS.dead) == 300


async def test_dead_letters_go_by_bytes_and_by_age(redis) -> None:
    await filled(redis, KEYS.dead, 1)
    await tidy(redis, EntryId(0), dead_keep_bytes=100_000)
    assert 30 <= await redis.xlen(KEYS.dead) <= 110
    now_ms = await TaskStore(redis, KEYS, "token").now_ms()
    await filled(redis, KEYS.dead, now_ms - 1000)
    await tidy(redis, EntryId(0), dead_keep_s=3600)
    assert await redis.xlen(KEYS.dead) == 300


async def test_of_the_records_of_versions_the_newest_stay(redis) -> None:
    for version in range(12):
        await redis.hset(KEYS.versions, str(version), b"{}")
    await tidy(redis, EntryId(0), versions_keep=3)
    assert sorted(await redis.hkeys(KEYS.versions), key=int) == [b"9", b"10", b"11"]
