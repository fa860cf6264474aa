"""A name whose last task was deleted: a new one waits until its topics are cleared."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import servers
from redis.asyncio import Redis

from aggregator import tasks
from aggregator.moving import import_task
from aggregator.tasks import EPOCH_ZERO_S, all_tasks, create_task, delete_task, fresh_epoch
from redis_session.connection import connect
from schemas.errors import ConfigError
from schemas.keys import LEAVING
from schemas.names import TaskName
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec
from tests.aggregator.test_archive import backup

TASK = TaskName("again")
SPEC = TaskSpec(ParamSpec((TensorSpec("w", (2,)),)))


@pytest.fixture
async def redis(tmp_path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Redis]:
    monkeypatch.setattr(tasks, "CLEARED_S", 0.2)
    with servers.redis_server(tmp_path) as server:
        async with connect(f"redis://{servers.HOST}:{server.port}/0") as redis:
            await create_task(redis, TASK, SPEC, np.zeros(2, np.float32), epoch=1)
            await delete_task(redis, TASK)
            yield redis


async def create(redis: Redis) -> None:
    await create_task(redis, TASK, SPEC, np.zeros(2, np.float32), epoch=2)


async def restore(redis: Redis) -> None:
    await import_task(redis, TASK, backup(), unix_s=1.8e9)


@pytest.mark.parametrize("begin", [create, restore])
async def test_it_does_not_begin_while_the_old_one_has_not_gone(redis, begin) -> None:
    with pytest.raises(ConfigError, match="no bridge has cleared its topics yet"):
        await begin(redis)
    assert await all_tasks(redis) == []


@pytest.mark.parametrize("begin", [create, restore])
async def test_it_begins_as_soon_as_a_bridge_has_cleared_them(redis, begin, monkeypatch) -> None:
    monkeypatch.setattr(tasks, "CLEARED_S", 20.0)
    beginning = asyncio.create_task(begin(redis))
    await asyncio.sleep(0)
    await redis.srem(LEAVING, TASK)
    await beginning
    assert await all_tasks(redis) == [TASK]


async def test_a_radio_never_takes_the_next_life_for_the_last(redis) -> None:
    """Its frames tell an epoch's lowest four bits; `redis` has buried epoch 1."""

    async def fresh(steps: int, last: int = 0) -> int:
        return await fresh_epoch(redis, TASK, EPOCH_ZERO_S + 4 * 3600 * steps, last=last)

    assert await fresh(0) == 2
    assert [await fresh(steps) for steps in (16, 17, 18, 33)] == [16, 18, 18, 34]
    assert [await fresh(steps, last=18) for steps in (2, 33, 34)] == [19, 35, 35]
    other = await fresh_epoch(redis, TaskName("never"), EPOCH_ZERO_S + 4 * 3600 * 17)
    assert other == 17
