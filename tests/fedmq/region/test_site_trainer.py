"""A region's trainer against a site's real aggregator: restarts, an upstream out of reach, time."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from redis.asyncio import Redis

from aggregator.service import serve
from aggregator.settings import AggregatorSettings
from aggregator.tasks import append_entry, commit_if_any, create_task, kept_model, last_commit
from edge_agent.trainer import TrainResult
from fedmq.region import SiteTrainer
from lifetimes.together import end
from redis_session.connection import connect
from schemas.errors import ConfigError
from schemas.log import Arrived, ModelSet, PhaseSet
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, ModelVersion, Seq, TaskName, shard_of
from schemas.params import Params, ParamSpec, TensorSpec, base_digest
from schemas.strategy import StrategyOptions
from schemas.task import CodecOptions, TaskSpec, TrainOptions, checked_spec
from schemas.wire import encode_update

SITE, DEVICE = TaskName("site"), DeviceId("one")
STEP = np.array([0.5, -1.0], np.float32)
BASE = np.array([1.0, 2.0], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.valkey(tmp_path_factory.mktemp("valkey"), appendfsync="no") as server:
        yield server


@dataclass
class Site:
    """A site's task of two numbers; K = 2, and what is left is folded after 0.2 s."""

    redis: Redis
    url: str
    seqs: Iterator[int] = field(default_factory=lambda: count(1))

    async def sends(self, times: int = 1) -> None:
        """A device has trained on the newest version of the site."""
        spec, small = checked_spec(SPEC), await last_commit(self.redis, SITE)
        manifest = (await kept_model(self.redis, SITE, small.version)).manifest
        for seq in (next(self.seqs) for _ in range(times)):
            update = ModelUpdate(
                epoch=manifest.epoch,
                boot=Boot(1),
                seq=Seq(seq),
                base_version=ModelVersion(manifest.version),
                base_digest=base_digest(manifest.model_digest),
                spec_digest=spec.params.short_digest,
                codec=0,
                num_examples=5,
                payload=STEP.tobytes(),
            )
            data = encode_update(update)
            await append_entry(self.redis, SITE, Arrived(DEVICE, shard_of(DEVICE), data, len(data)))

    async def until(self, version: int, phase: str = "running") -> None:
        while True:
            small = await last_commit(self.redis, SITE)
            if (small.version, small.phase) == (version, phase):
                return
            await asyncio.sleep(0.02)


SPEC = TaskSpec(
    ParamSpec((TensorSpec("w", (2,)),)),
    codec=CodecOptions("float32"),
    strategy=StrategyOptions(buffer_size=2, flush_after_s=0.2),
)


@asynccontextmanager
async def site_at(server: servers.Server) -> AsyncIterator[Site]:
    url = f"redis://{servers.HOST}:{server.port}/0"
    async with connect(url) as redis, asyncio.timeout(20):
        await redis.flushall()
        await create_task(redis, SITE, SPEC, np.zeros(2, np.float32), epoch=1)
        await append_entry(redis, SITE, PhaseSet("paused"))
        running = asyncio.create_task(serve(AggregatorSettings(redis_url=url)))
        try:
            while not await _folded(redis):
                await asyncio.sleep(0.02)
            yield Site(redis, url)
        finally:
            await end([running])


async def _folded(redis: Redis) -> bool:
    commit = await commit_if_any(redis, SITE)
    return commit is not None and commit.phase == "paused"


def training(trainer: SiteTrainer, params: Params) -> "asyncio.Task[TrainResult]":
    rng: Any = None
    call = asyncio.to_thread(trainer.train, {"w": params}, TrainOptions(), rng)
    return asyncio.create_task(call)


def w(result: TrainResult) -> Params:
    return np.asarray(result.tensors["w"], np.float32)


async def test_who_starts_again_goes_on_with_the_round_and_keeps_what_has_come(
    server: servers.Server, tmp_path: Path
) -> None:
    memory = tmp_path / "round.json"
    async with site_at(server) as site:
        first = SiteTrainer(site.url, SITE, 4, 60.0, memory)
        running = training(first, BASE)
        await site.until(version=1)
        assert (await kept_model(site.redis, SITE, 1)).params.tobytes() == BASE.tobytes()
        await site.sends(2)
        await site.until(version=2)
        first.stop()
        with pytest.raises(ValueError, match="the region ends"):
            await running
        again = training(SiteTrainer(site.url, SITE, 4, 60.0, memory), BASE)
        await site.sends(2)
        result = await again
        await site.until(version=3, phase="paused")
    assert (result.contributions, result.weight) == (4, 1.0)
    np.testing.assert_allclose(w(result), BASE + STEP, rtol=1e-6)


async def test_while_the_upstream_is_out_of_reach_an_update_grows_and_then_a_new_round_begins(
    server: servers.Server,
) -> None:
    async with site_at(server) as site:
        trainer = SiteTrainer(site.url, SITE, 1, 60.0)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(1)  # a partial flush: half of K
        one = await running
        await site.until(version=2, phase="paused")
        running = training(trainer, w(one))
        await site.until(version=2)
        await site.sends(2)
        grown = await running
        await site.until(version=3, phase="paused")
        await site.sends(2)  # late
        await site.until(version=4, phase="paused")
        running = training(trainer, BASE * 2)
        await site.until(version=5)
        await site.sends(2)
        fresh = await running
    assert [each.contributions for each in (one, grown, fresh)] == [1, 3, 2]
    for result, base in ((one, BASE), (grown, BASE), (fresh, BASE * 2)):
        np.testing.assert_allclose(w(result), base + STEP, rtol=1e-6)


async def test_a_round_under_which_the_site_is_rolled_back_is_begun_again(
    server: servers.Server,
) -> None:
    async with site_at(server) as site:
        trainer = SiteTrainer(site.url, SITE, 4, 60.0)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(2)
        await site.until(version=2)
        await append_entry(site.redis, SITE, ModelSet(BASE.tobytes(), 1))
        with pytest.raises(ValueError, match="rolled back"):
            await running
        running = training(trainer, BASE)
        await site.until(version=4)
        await site.sends(4)  # two of them are a version late
        result = await running
    assert result.contributions == 4
    assert result.weight == pytest.approx((1 + 2**-0.5) / 2)
    np.testing.assert_allclose(w(result), BASE + STEP * np.float32(result.weight), rtol=1e-6)


async def test_when_the_time_is_over_an_update_is_made_of_what_has_come_and_of_nothing_none(
    server: servers.Server,
) -> None:
    async with site_at(server) as site:
        running = training(SiteTrainer(site.url, SITE, 100, 0.1), BASE)
        await site.until(version=1)
        await asyncio.sleep(0.4)
        assert not running.done()
        await site.sends(1)
        result = await running
    assert result.contributions == 1
    np.testing.assert_allclose(w(result), BASE + STEP, rtol=1e-6)


async def test_a_site_that_is_not_there_is_named(server: servers.Server) -> None:
    async with site_at(server) as site:
        with pytest.raises(ConfigError, match="'other' does not exist"):
            await SiteTrainer(site.url, "other").check()
    dead = SiteTrainer(f"redis://{servers.HOST}:{servers.free_port()}/0", SITE)
    with pytest.raises(ValueError, match="the site's redis does not answer"):
        await training(dead, BASE)
