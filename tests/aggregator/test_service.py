import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import servers
from msgspec.structs import replace
from redis.asyncio import Redis

from aggregator import service
from aggregator.fold import Fold, origin_state
from aggregator.service import serve
from aggregator.settings import AggregatorSettings
from aggregator.tasks import create_task, last_commit, published_model, task_spec, task_status
from lifetimes.together import end
from redis_session.connection import connect
from schemas.codecs import Ask, CodecOptions, codec_by_name
from schemas.keys import AGGREGATORS, TaskKeys
from schemas.log import Arrived, to_fields
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName, shard_of
from schemas.params import ParamSpec, TensorSpec, base_digest
from schemas.strategy import StrategyOptions
from schemas.task import TaskSpec
from schemas.wire import encode_update
from tests.aggregator.world import EPOCH, World

GOOD, BAD = TaskName("good"), TaskName("bad")
SPEC = TaskSpec(ParamSpec((TensorSpec("w", (2,)),)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def url(server: servers.Server) -> str:
    return f"redis://{servers.HOST}:{server.port}/0"


@pytest.fixture
async def redis(url: str) -> AsyncIterator[Redis]:
    async with connect(url) as redis:
        await redis.flushall()
        yield redis


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[None]:
    running = asyncio.create_task(serve(AggregatorSettings(redis_url=url)))
    try:
        async with asyncio.timeout(30):
            yield
        assert not running.done()
    finally:
        await end([running])


def test_a_batch_ends_early_when_folding_takes_long() -> None:
    world = World()
    for _ in range(3):
        world.send()
    fold = Fold(origin_state(EPOCH, world.params))
    for entry in world.log:
        service._apply(fold, world.log[world.log.index(entry) :], until=0.0)
        assert fold.state.cursor == entry.id, "one entry at least, and no more"


async def published(redis: Redis, task: TaskName) -> None:
    while await published_model(redis, task) is None:
        await asyncio.sleep(0.02)


async def test_one_tasks_broken_log_stops_no_other_and_is_tried_again(
    redis: Redis, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "TROUBLE_S", 0.05)
    zeros = np.zeros(2, np.float32)
    await create_task(redis, BAD, SPEC, zeros, epoch=1)
    broken = await redis.xadd(TaskKeys(BAD).log, {"k": "nobody wrote this"})
    async with serving(url):
        while not await redis.exists(TaskKeys(BAD).holder):  # it has begun with the broken one
            await asyncio.sleep(0.02)
        await create_task(redis, GOOD, SPEC, zeros, epoch=1)
        await published(redis, GOOD)
        assert await published_model(redis, BAD) is None
        await redis.xdel(TaskKeys(BAD).log, broken)
        await published(redis, BAD)


async def test_a_task_that_is_created_while_it_serves_is_served(redis: Redis, url: str) -> None:
    async with serving(url):
        await create_task(redis, GOOD, SPEC, np.ones(2, np.float32), epoch=7)
        await published(redis, GOOD)
    model = await published_model(redis, GOOD)
    assert model is not None
    assert (model.manifest.epoch, model.manifest.version) == (7, 0)
    assert model.params.tolist() == [1, 1]


async def test_a_task_has_a_status_and_a_specification_before_anyone_serves_it(
    redis: Redis,
) -> None:
    assert await task_status(redis, GOOD) is None
    assert await task_spec(redis, GOOD) is None
    await create_task(redis, GOOD, SPEC, np.ones(2, np.float32), epoch=7)
    status = await task_status(redis, GOOD)
    assert status is not None
    assert (status["version"], status["updates_stored"]) == (None, 0)
    assert await task_spec(redis, GOOD) == SPEC


async def holders(redis: Redis, tasks: list[TaskName]) -> set[bytes | None]:
    return {await redis.get(TaskKeys(task).holder) for task in tasks}


async def test_two_aggregators_share_the_tasks_and_one_takes_all_when_the_other_leaves(
    redis: Redis, url: str
) -> None:
    tasks = [TaskName(f"t{n}") for n in range(16)]  # that one prefers all: once in 32,768 runs
    for task in tasks:
        await create_task(redis, task, SPEC, np.zeros(2, np.float32), epoch=1)
    settings = AggregatorSettings(redis_url=url, lease_s=0.5)
    first = asyncio.create_task(serve(settings))
    try:
        async with asyncio.timeout(60):
            while None in (alone := await holders(redis, tasks)) or len(alone) != 1:
                await asyncio.sleep(0.05)
            second = asyncio.create_task(serve(settings))
            while None in (both := await holders(redis, tasks)) or len(both) != 2:
                await asyncio.sleep(0.05)
            await end([second])
            while await holders(redis, tasks) != alone:
                await asyncio.sleep(0.05)
    finally:
        await end([first])


async def test_who_serves_other_tasks_only_is_left_none(redis: Redis, url: str) -> None:
    settings = AggregatorSettings(redis_url=url, lease_s=0.5)
    other = asyncio.create_task(serve(replace(settings, tasks="elsewhere")))
    tasks = [TaskName(f"t{n}") for n in range(8)]
    for task in tasks:
        await create_task(redis, task, SPEC, np.zeros(2, np.float32), epoch=1)
    async with asyncio.timeout(30):
        while not await redis.zcard(AGGREGATORS):
            await asyncio.sleep(0.02)
    able = asyncio.create_task(serve(settings))
    try:
        async with asyncio.timeout(30):
            while None in (found := await holders(redis, tasks)) or len(found) != 1:
                await asyncio.sleep(0.05)
    finally:
        await end([other, able])


async def test_a_clock_that_was_set_back_an_hour_stops_no_deadline_and_no_takeover(
    redis: Redis, url: str
) -> None:
    spec = TaskSpec(SPEC.params, strategy=StrategyOptions(buffer_size=9, flush_after_s=0.2))
    await create_task(redis, GOOD, spec, np.zeros(2, np.float32), epoch=1)
    seconds, _ = await redis.time()
    ahead = (int(seconds) + 3600) * 1000
    keys = TaskKeys(GOOD)
    entry = (await redis.xrange(keys.log))[0][1]
    await redis.delete(keys.log)
    await redis.xadd(keys.log, entry, id=f"{ahead}-0")  # the clock was an hour ahead then
    await redis.set(keys.holder, "dead:500", px=3_600_000)  # and so was the lease
    await redis.zadd(AGGREGATORS, {"dead:500 ": float(ahead)})
    running = asyncio.create_task(serve(AggregatorSettings(redis_url=url, lease_s=0.5)))
    try:
        async with asyncio.timeout(30):
            await published(redis, GOOD)
            base = await published_model(redis, GOOD)
            assert base is not None
            device, codec = DeviceId("d"), codec_by_name(SPEC.codec.name)
            update = encode_update(
                ModelUpdate(
                    epoch=Epoch(1),
                    boot=Boot(1),
                    seq=Seq(1),
                    base_version=ModelVersion(0),
                    base_digest=base_digest(base.manifest.model_digest),
                    spec_digest=SPEC.params.short_digest,
                    codec=codec.codec_id,
                    num_examples=1,
                    payload=codec.encode(
                        np.ones(2, np.float32),
                        Ask(CodecOptions(density=1.0)),
                        np.random.default_rng(0),
                    ),
                )
            )
            fields: Any = to_fields(Arrived(device, shard_of(device), update, len(update)))
            await redis.xadd(keys.log, fields)
            while (await last_commit(redis, GOOD)).version != 1:  # flushed in part, by a tick
                await asyncio.sleep(0.05)
    finally:
        await end([running])
