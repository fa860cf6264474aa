from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import servers
from redis.asyncio import Redis

from aggregator.tasks import create_task
from broker.queue import Queue
from broker.routing import Routed, Unroutable
from redis_session.connection import connect
from schemas.keys import LOST, TaskKeys
from schemas.log import Arrived
from schemas.names import DeviceId, TaskName, shard_of
from schemas.outbox import Say, to_fields
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec

TASK = TaskName("pumps")
KEYS = TaskKeys(TASK)
DEVICE = DeviceId("pump-1")
SPEC = TaskSpec(ParamSpec((TensorSpec("w", (2,)),)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def redis(server: servers.Server) -> AsyncIterator[Redis]:
    async with connect(f"redis://{servers.HOST}:{server.port}/0") as redis:
        await redis.flushall()
        yield redis


def routed(task: TaskName, data: bytes) -> Routed:
    return Routed(task, Arrived(DEVICE, shard_of(DEVICE), data, len(data)))


async def create(redis: Redis) -> None:
    await create_task(redis, TASK, SPEC, np.zeros(2, np.float32), epoch=1)


async def test_messages_are_appended_in_order_and_an_unknown_task_gets_no_log(redis: Redis) -> None:
    await create(redis)
    messages = [
        routed(TASK, b"1"),
        routed(TaskName("nobody"), b"2"),
        Unroutable("some/topic", b"3"),
        routed(TASK, b"4"),
    ]
    assert await Queue(redis, "me").append(messages) == [True, False, True, True]
    log = [fields[b"p"] for _, fields in await redis.xrange(KEYS.log)]
    assert log[1:] == [b"1", b"4"]
    assert not await redis.exists(TaskKeys(TaskName("nobody")).log)
    assert [fields[b"p"] for _, fields in await redis.xrange(LOST)] == [b"3"]


async def test_one_bridge_at_a_time_holds_a_downlink(redis: Redis) -> None:
    first, second = Queue(redis, "first"), Queue(redis, "second")
    assert await first.hold_downlink(TASK, 60_000)
    assert not await second.hold_downlink(TASK, 60_000)
    assert await first.hold_downlink(TASK, 60_000), "its own lease is renewed"
    assert 0 < await redis.pttl(KEYS.downlink) <= 60_000
    await redis.delete(KEYS.downlink)  # as if its time had run out
    assert await second.hold_downlink(TASK, 60_000)
    assert not await first.hold_downlink(TASK, 60_000)


async def test_only_the_holder_notes_how_far_the_outbox_was_carried(redis: Redis) -> None:
    ids = [
        await redis.xadd(KEYS.outbox, to_fields(Say("events", b"x", retain=False))) for _ in "12"
    ]
    first, second = Queue(redis, "first"), Queue(redis, "second")
    assert await second.hold_downlink(TASK, 60_000)
    assert not await first.note_said(TASK, ids[1].decode())
    assert await first.last_said(TASK) == "0-0"
    assert await redis.xlen(KEYS.outbox) == 2
    assert await second.note_said(TASK, ids[1].decode())
    assert await first.last_said(TASK) == ids[1].decode()
    assert await redis.xlen(KEYS.outbox) == 1, "what was carried before it is trimmed"


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ((), "always"),
        (("--appendfsync", "everysec"), "everysec"),
        (("--no-appendfsync-on-rewrite", "yes"), "everysec"),
        (("--appendonly", "no"), "none"),
    ],
)
async def test_it_learns_when_redis_syncs(tmp_path: Path, extra, told: str) -> None:
    with servers.redis_server(tmp_path, extra=extra) as server:
        async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
            queue = Queue(redis, "me")
            await queue.begin()
            assert queue.fsync == told


async def test_a_wish_to_hear_everything_again_is_told_once_and_a_full_redis_may_forget_it(
    tmp_path: Path,
) -> None:
    with servers.redis_server(tmp_path) as server:
        async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
            queue = Queue(redis, "me:1000")
            assert not await queue.is_asked_again(TASK)
            await queue.ask_again(TASK)
            assert await queue.is_asked_again(TASK)
            assert not await queue.is_asked_again(TASK)
            await redis.config_set("maxmemory", "1")
            await queue.ask_again(TASK)
            assert not await queue.is_asked_again(TASK)
