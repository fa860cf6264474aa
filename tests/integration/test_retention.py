"""What is kept of a task stays within its bounds, and what was not folded stays."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from aggregator.settings import AggregatorSettings
from aggregator.store import TaskStore
from redis_session.connection import connect
from schemas.keys import TaskKeys
from schemas.log import EntryId, Tick
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
    await redis.set(KEYS.holder, "token")
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


async def test_who_lost_the_lease_trims_nothing(redis) -> None:
    await filled(redis, KEYS.log, 1)
    await filled(redis, KEYS.dead, 1)
    settings = AggregatorSettings(log_keep_bytes=1, dead_keep_bytes=1, dead_keep_s=0)
    for holder in ("another", None):
        await (redis.set(KEYS.holder, holder) if holder else redis.delete(KEYS.holder))
        await TaskStore(redis, KEYS, "token").tidy(EntryId(300), settings)
        assert await redis.xlen(KEYS.log) == await redis.xlen(KEYS.dead) == 300


async def test_on_another_server_than_was_loaded_from_nothing_is_trimmed(redis, server) -> None:
    settings = AggregatorSettings(log_keep_bytes=1, dead_keep_bytes=0, dead_keep_s=0)
    await filled(redis, KEYS.log, 1)
    await redis.set(KEYS.holder, "token")
    await redis.hset(KEYS.origin, mapping={"epoch": 1, "params": bytes(4), "life": "first"})
    store = TaskStore(redis, KEYS, "token")
    assert await store.load() is not None
    server.kill()
    server.start()  # all is there, the token too; as on a replica that was promoted
    with pytest.raises(RedisError):
        await redis.ping()
    await store.tidy(EntryId(100), settings)
    assert await redis.xlen(KEYS.log) == 300
    again = TaskStore(redis, KEYS, "token")
    assert await again.load() is not None
    await again.tidy(EntryId(100), settings)
    assert await oldest(redis, KEYS.log) == 101
    await redis.hset(KEYS.origin, "life", "second")  # deleted, and created again
    await again.tidy(EntryId(300), settings)
    assert await oldest(redis, KEYS.log) == 101


@pytest.mark.parametrize(("key", "name"), [(KEYS.checkpoint, "serial"), (KEYS.origin, "life")])
async def test_a_checkpoint_that_changes_in_the_reading_is_read_again(
    redis, monkeypatch, key, name
) -> None:
    await redis.hset(KEYS.origin, mapping={"epoch": 1, "params": bytes(4), "life": "first"})
    execute, left = Pipeline.execute, iter(range(2))

    async def meddling(self: Any) -> Any:
        """Between the reads, a commit of another's, or another life."""
        number = next(left, None)
        if number is None:
            if name == "serial":
                await redis.delete(key)
            return await execute(self)
        self.command_stack.insert(4, (("HSET", key, name, number), {}))
        return [found for at, found in enumerate(await execute(self)) if at != 4]

    monkeypatch.setattr(Pipeline, "execute", meddling)
    store = TaskStore(redis, KEYS, "token")
    loaded = await store.load()
    assert loaded is not None
    assert loaded[1].life == ("1" if name == "life" else "first")
    assert next(left, None) is None
    left = iter(range(100))
    with pytest.raises(RedisError, match="somebody else holds"):
        await store.load()


async def test_a_full_redis_is_loaded_waited_for_and_trimmed(redis) -> None:
    await redis.hset(KEYS.origin, mapping={"epoch": 1, "params": bytes(4), "life": "first"})
    await redis.set(KEYS.holder, "token")
    await filled(redis, KEYS.log, 1)
    store = TaskStore(redis, KEYS, "token")
    await redis.config_set("maxmemory", 1)
    try:
        assert await store.load() is not None
        await store.append(Tick())
        await store.append(Tick(), not_before_ms=10**14)
        await store.tidy(EntryId(300), AggregatorSettings(log_keep_bytes=1))
        ids = [EntryId.parse(entry_id) for entry_id, _ in await redis.xrange(KEYS.log)]
        assert len(ids) == 2
        assert ids[1].ms == 10**14
        await redis.delete(KEYS.log)
        await store.append(Tick())
        assert not await redis.exists(KEYS.log), "a deleted task has no log"
    finally:
        await redis.config_set("maxmemory", 0)
