"""A lattice task on real servers: who slept catches up by one merged diff, to the last bit."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers

from aggregator.service import serve as fold
from aggregator.settings import AggregatorSettings
from aggregator.tasks import create_task, published_model
from broker.bridge import serve as carry
from broker.settings import BridgeSettings
from edge_agent.agent import Agent
from edge_agent.rounds import entropy_of
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainer import TrainResult
from lifetimes.together import end
from redis_session.connection import connect
from schemas.initial import initial_params
from schemas.names import TaskName
from schemas.params import ParamSpec, TensorSpec, unflatten
from schemas.strategy import StrategyOptions
from schemas.task import CodecOptions, InitOptions, PublishOptions, TaskSpec, checked_spec
from schemas.wire import decode_manifest

TASK, SEED = TaskName("walks"), InitOptions(seed=11)
SPEC = checked_spec(
    TaskSpec(
        ParamSpec((TensorSpec("w", (120, 40)), TensorSpec("b", (40,)))),
        codec=CodecOptions(name="float32"),
        strategy=StrategyOptions(buffer_size=2, flush_after_s=0.0, max_staleness=1000),
        publish=PublishOptions(lattice=True, chunk_bytes=1024),
        init=SEED,
    )
)


PLACES = np.random.default_rng(3).choice(SPEC.params.size, 90, replace=False)


class Wanders:
    """A trainer that goes far in all directions at first, and then back and forth in a few."""

    def __init__(self) -> None:
        self.rounds = 0

    def train(self, tensors: Any, _options: object, rng: np.random.Generator) -> TrainResult:
        self.rounds += 1
        places = np.arange(SPEC.params.size) if self.rounds <= 2 else PLACES
        step = np.zeros(SPEC.params.size, np.float32)
        step[places] = rng.normal(0, 0.15, places.size)
        far = unflatten(SPEC.params, step)
        return TrainResult({name: tensors[name] + far[name] for name in tensors}, num_examples=1)


@asynccontextmanager
async def device(
    name: str, mqtt_port: int, folder: Path, *, trains: bool = False
) -> AsyncIterator[tuple[Agent, Spool]]:
    settings = AgentSettings(
        mqtt_port=mqtt_port,
        device=name,
        task=TASK,
        trainer="not:used",
        resend_s=5.0,
        silence_s=5.0,
        reconnect_s=0.2,
    )
    spool = Spool(folder / f"{name}.sqlite")
    seed = sum(name.encode())
    trainer: Any = Wanders()
    made = Agent(settings, trainer, spool, entropy=entropy_of(seed), rng=random.Random(seed))
    if not trains:
        made.drain()
    running = asyncio.create_task(made.run())
    try:
        yield made, spool
        assert not running.done()
    finally:
        await end([running])
        spool.close()


def serial_of(spool: Spool) -> int:
    raw = spool.load("manifest")
    return -1 if raw is None else decode_manifest(raw).serial


async def until(condition: Any, patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():
            await asyncio.sleep(0.02)


def ways(told: str, version: int) -> list[tuple[str, int]]:
    """How each device that caught up with a version did so, and for how many bytes."""
    found = re.findall(rf"version={version} way=(\w+) bytes=(\d+)", told)
    return [(way, int(size)) for way, size in found]


async def test_who_slept_catches_up_by_one_merged_diff_and_has_the_same_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedmq.agent")
    with servers.mosquitto(tmp_path) as mqtt, servers.redis_server(tmp_path) as store:
        url = f"redis://{servers.HOST}:{store.port}/0"
        async with AsyncExitStack() as life:
            redis = await life.enter_async_context(connect(url))
            first = initial_params(SPEC.params, SEED, np.random.default_rng(SEED.seed))
            await create_task(redis, TASK, SPEC, first, epoch=1)
            bridge = carry(BridgeSettings(mqtt_port=mqtt.port, redis_url=url), rng=random.Random(1))
            server = fold(AggregatorSettings(redis_url=url))
            life.push_async_callback(end, [asyncio.create_task(each) for each in (bridge, server)])

            async with AsyncExitStack() as awake:
                pair = [
                    await awake.enter_async_context(device(name, mqtt.port, tmp_path, trains=True))
                    for name in ("one", "two")
                ]
                (one, spool), (two, _) = pair
                await until(lambda: serial_of(spool) >= 5)
                async with device("sleeper", mqtt.port, tmp_path) as (agent, asleep):
                    await until(lambda: agent.version is not None)
                    since = serial_of(asleep)
                await until(lambda: serial_of(spool) >= since + 21)
                for each in (one, two):
                    each.drain()
                await until(lambda: one.version == two.version and not one.open_updates)
            published = await published_model(redis, TASK)
            assert published is not None
            newest, bits = published.manifest.version, published.params.tobytes()
            assert not np.array_equal(published.params, first)
            caplog.clear()
            async with device("sleeper", mqtt.port, tmp_path) as (agent, spool):
                await until(lambda: agent.version == newest)
                assert spool.load("params") == bits
                assert spool.load("origin") is None
            async with device("newcomer", mqtt.port, tmp_path) as (agent, spool):
                await until(lambda: agent.version == newest)
                assert spool.load("params") == bits
    found = dict(ways(caplog.text, newest))
    assert found.keys() == {"ask", "keyframe"}
    assert 2 * found["ask"] < found["keyframe"] < 4 * SPEC.params.size // 4
