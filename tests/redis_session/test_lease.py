from collections.abc import AsyncIterator, Iterator

import pytest
import servers
from redis.asyncio import Redis

from redis_session.connection import connect
from redis_session.lease import AnotherServerError, Lease, fresh_token


@pytest.fixture(scope="module", params=["redis", "valkey"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Server]:
    start = servers.redis_server if request.param == "redis" else servers.valkey
    with start(tmp_path_factory.mktemp("lease"), appendfsync="no") as running:
        yield running


@pytest.fixture
async def redis(server: servers.Server) -> AsyncIterator[Redis]:
    async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
        await redis.flushall()
        yield redis
        await redis.config_set("maxmemory", "0")


def leases(redis: Redis) -> tuple[Lease, Lease]:
    return Lease(redis, "key", fresh_token(60)), Lease(redis, "key", fresh_token(60))


async def test_one_holds_it_and_the_other_gets_it_when_it_is_given_back(redis: Redis) -> None:
    mine, yours = leases(redis)
    assert await mine.hold(60_000)
    assert await mine.hold(60_000)
    assert not await yours.hold(60_000)
    await yours.release()
    assert not await yours.hold(60_000)
    await mine.release()
    assert await yours.hold(60_000)


async def test_a_lease_that_a_clock_set_back_has_made_longer_is_shortened(redis: Redis) -> None:
    _, yours = leases(redis)
    await redis.set("key", "another:500", px=3_600_000)
    assert not await yours.hold(60_000)
    assert 0 < await redis.pttl("key") <= 500


async def test_a_lease_of_another_length_is_left_as_it_is(redis: Redis) -> None:
    _, yours = leases(redis)
    await redis.set("key", "another:90000", px=80_000)
    assert not await yours.hold(500)
    assert await redis.pttl("key") > 70_000


async def test_another_server_is_told_apart(redis: Redis) -> None:
    mine, _ = leases(redis)
    info = await redis.info("server")
    assert await mine.hold(60_000, run_id=info["run_id"])
    with pytest.raises(AnotherServerError):
        await mine.hold(60_000, run_id="0" * 40)


async def test_a_full_redis_still_renews_and_gives_back(redis: Redis) -> None:
    mine, yours = leases(redis)
    await redis.config_set("maxmemory", "1")
    assert await mine.hold(60_000)
    assert not await yours.hold(60_000)
    await mine.release()
    assert await yours.hold(60_000)


async def test_without_replicas_nobody_has_it(redis: Redis) -> None:
    mine, _ = leases(redis)
    info = await redis.info("server")
    answer = await mine.hold_and_wait(60_000, run_id=info["run_id"], replicas=1, longest_ms=10)
    assert answer == (True, 0)
