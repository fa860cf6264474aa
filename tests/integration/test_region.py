"""A site of two devices is one device of its upstream, and weighs there as the two would have."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers

from aggregator.service import serve as fold
from aggregator.settings import AggregatorSettings
from aggregator.tasks import (
    append_entry,
    commit_if_any,
    create_task,
    kept_model,
    last_commit,
    published_model,
)
from broker.bridge import serve as carry
from broker.settings import BridgeSettings
from edge_agent.agent import Agent
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainer import TrainResult
from fedmq.region import SiteTrainer
from lifetimes.together import end
from redis_session.connection import connect
from schemas.codecs import CodecOptions
from schemas.log import PhaseSet
from schemas.names import TaskName
from schemas.params import Params, ParamSpec, TensorSpec
from schemas.strategy import StrategyOptions
from schemas.task import TaskSpec, checked_spec

ABOVE, SITE, SIZE = TaskName("pumps"), TaskName("pumps-north"), 300
PREFIXES = {ABOVE: "top/v1", SITE: "site/v1"}
ORIGIN = np.random.default_rng(1).normal(0, 1, SIZE).astype(np.float32)
MOVES = np.random.default_rng(2).normal(0, 0.1, (3, SIZE)).astype(np.float32)


def spec_with(strategy: StrategyOptions) -> TaskSpec:
    params = ParamSpec((TensorSpec("w", (SIZE,)),))
    return checked_spec(TaskSpec(params, codec=CodecOptions("float32"), strategy=strategy))


UPSTREAM = spec_with(StrategyOptions(buffer_size=3, flush_after_s=0, contributions_max=4))
INNER = spec_with(StrategyOptions(buffer_size=5, flush_after_s=1.0))
"""Two of five: a partial flush, which divides by five."""


class Moves:
    """A trainer that always moves the model by the same step."""

    def __init__(self, step: Params) -> None:
        self.step = step

    def train(self, tensors: Any, _options: object, _rng: object) -> TrainResult:
        return TrainResult({"w": tensors["w"] + self.step}, num_examples=7)


@asynccontextmanager
async def device(
    name: str, task: TaskName, port: int, folder: Path, trainer: Any
) -> AsyncIterator[Agent]:
    prefix = PREFIXES[task]
    settings = AgentSettings(
        mqtt_port=port, prefix=prefix, device=name, task=task, trainer="not:used", reconnect_s=0.2
    )
    spool = Spool(folder / f"{name}.sqlite")
    agent = Agent(settings, trainer, spool, rng=random.Random(4))
    running = asyncio.create_task(agent.run())
    try:
        yield agent
        assert not running.done()
    finally:
        if isinstance(trainer, SiteTrainer):
            trainer.stop()
        await end([running])
        spool.close()


async def until(holds: Any, patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while not await holds():
            await asyncio.sleep(0.02)


async def test_a_merged_update_weighs_in_the_upstream_as_its_devices_would_have(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fedmq.region")
    with servers.mosquitto(tmp_path) as mqtt, servers.valkey(tmp_path) as store:
        above, inner = (f"redis://{servers.HOST}:{store.port}/{db}" for db in (0, 1))
        async with AsyncExitStack() as life:
            enter = life.enter_async_context
            top, site = await enter(connect(above)), await enter(connect(inner))
            await create_task(top, ABOVE, UPSTREAM, ORIGIN, epoch=1)
            await create_task(site, SITE, INNER, np.zeros(SIZE, np.float32), epoch=1)
            await append_entry(site, SITE, PhaseSet("paused"))
            services: list[Any] = []
            for url, prefix in zip((above, inner), PREFIXES.values(), strict=True):
                bridge = BridgeSettings(
                    mqtt_port=mqtt.port, redis_url=url, prefix=prefix, client_id=prefix[:3]
                )
                services += [carry(bridge, rng=random.Random(1))]
                services += [fold(AggregatorSettings(redis_url=url))]
            life.push_async_callback(end, [asyncio.create_task(each) for each in services])

            async def folded() -> bool:
                commit = await commit_if_any(site, SITE)
                return commit is not None and commit.phase == "paused"

            await until(folded)
            trainer = SiteTrainer(inner, SITE, 2, 30.0, tmp_path / "round.json")
            await trainer.check()
            region = await enter(device("north", ABOVE, mqtt.port, tmp_path, trainer))
            lone = await enter(device("lone", ABOVE, mqtt.port, tmp_path, Moves(MOVES[2])))

            async def begun() -> bool:
                small = await last_commit(site, SITE)
                return small.version >= 1 and small.phase == "running"

            await until(begun)
            pair = [
                await enter(device(name, SITE, mqtt.port, tmp_path, Moves(MOVES[number])))
                for number, name in enumerate(("one", "two"))
            ]

            async def trained() -> bool:
                return all(each.created for each in (*pair, lone))

            await until(trained)
            for each in (*pair, lone):
                each.drain()

            async def advanced() -> bool:
                return (await last_commit(top, ABOVE)).version >= 1 and region.created == 1

            await until(advanced)
            flat = ORIGIN.astype(np.float64) + MOVES.astype(np.float64).sum(axis=0) / 3
            model = (await kept_model(top, ABOVE, 1)).params
            np.testing.assert_allclose(model, flat, rtol=0, atol=2e-6)
            small = await last_commit(top, ABOVE)
            assert (small.tally.folded, small.tally.weight, small.buffered) == (2, 3.0, 0)

            async def handed_down() -> bool:
                found = await published_model(site, SITE)
                return found is not None and found.params.tobytes() == model.tobytes()

            await until(handed_down)
    assert "merged contributions=2 weight=1.000" in caplog.text
