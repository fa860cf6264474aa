"""A region's trainer against a site's real aggregator: restarts, an upstream out of reach, time."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import servers
from redis import Redis as BlockingRedis
from redis.asyncio import Redis

import fedmq.region.site
from aggregator.service import serve
from aggregator.settings import AggregatorSettings
from aggregator.tasks import append_entry, commit_if_any, create_task, kept_model, last_commit
from edge_agent.spool import Spool
from edge_agent.trainer import Stopped, TrainResult
from fedmq.region import SiteTrainer
from lifetimes.together import end
from redis_session.connection import connect
from schemas.errors import ConfigError
from schemas.keys import TaskKeys
from schemas.log import Arrived, ModelSet, PhaseSet
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName, shard_of
from schemas.params import Params, ParamSpec, TensorSpec, base_digest
from schemas.strategy import StrategyOptions
from schemas.task import CodecOptions, PublishOptions, TaskSpec, TrainOptions, checked_spec
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
        for body in await self.updates(times):
            await append_entry(self.redis, SITE, body)

    async def updates(self, times: int = 1) -> list[Arrived]:
        """What it sends."""
        made: list[Arrived] = []
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
            made.append(Arrived(DEVICE, shard_of(DEVICE), data, len(data)))
        return made

    async def folds(self, updates: int) -> None:
        """Wait until so many are folded, in a version or not."""
        while (await last_commit(self.redis, SITE)).tally.folded < updates:
            await asyncio.sleep(0.02)

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


UNFLUSHED = msgspec.structs.replace(
    SPEC, strategy=StrategyOptions(buffer_size=2, flush_after_s=0.0)
)


@asynccontextmanager
async def site_at(server: servers.Server, spec: TaskSpec = SPEC) -> AsyncIterator[Site]:
    url = f"redis://{servers.HOST}:{server.port}/0"
    async with connect(url) as redis, asyncio.timeout(20):
        await redis.flushall()
        await create_task(redis, SITE, spec, np.zeros(2, np.float32), epoch=1)
        await append_entry(redis, SITE, PhaseSet("paused"))
        running = asyncio.create_task(serve(AggregatorSettings(redis_url=url)))
        try:
            while not await _folded(redis):
                await asyncio.sleep(0.02)
            yield Site(redis, url)
        finally:
            while STARTED:
                STARTED.pop().stop()  # else a test that fails would wait for its thread for ever
            await end([running])


STARTED: list[SiteTrainer] = []


async def _folded(redis: Redis) -> bool:
    commit = await commit_if_any(redis, SITE)
    return commit is not None and commit.phase == "paused"


def training(trainer: SiteTrainer, params: Params) -> "asyncio.Task[TrainResult]":
    rng: Any = None
    STARTED.append(trainer)
    call = asyncio.to_thread(trainer.train, {"w": params}, TrainOptions(), rng)
    return asyncio.create_task(call)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Spool]:
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        yield spool


def takes(outbox: Spool, replaces: Seq | None = None, *, sent: bool = True) -> Seq:
    """The agent has put what it was given into its outbox, and maybe sent it."""
    base = Epoch(1), ModelVersion(1)
    seq = outbox.put(lambda _seq: b"update", base=base, residual=None, replaces=replaces)
    assert seq is not None
    if sent:
        assert outbox.mark_sent(outbox.boot, seq)
    return seq


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
        with pytest.raises(Stopped, match="the region ends"):
            await running
        again = training(SiteTrainer(site.url, SITE, 4, 60.0, memory), BASE)
        await site.sends(2)
        result = await again
        await site.until(version=3, phase="paused")
    assert (result.contributions, result.weight) == (4, 1.0)
    np.testing.assert_allclose(w(result), BASE + STEP, rtol=1e-6)


async def test_while_the_upstream_is_out_of_reach_an_update_grows_and_then_a_new_round_begins(
    server: servers.Server, outbox: Spool
) -> None:
    async with site_at(server) as site:
        trainer = SiteTrainer(site.url, SITE, 1, 60.0, outbox=outbox)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(1)  # a partial flush: half of K
        one = await running
        seq = takes(outbox, sent=False)
        await site.until(version=2, phase="paused")
        running = training(trainer, w(one))
        await site.until(version=2)
        await site.sends(2)
        grown = await running
        takes(outbox, replaces=seq)
        await site.until(version=3, phase="paused")
        running = training(trainer, BASE * 2)
        await site.until(version=4)
        await site.sends(2)
        fresh = await running
    assert [each.contributions for each in (one, grown, fresh)] == [1, 3, 2]
    for result, base in ((one, BASE), (grown, BASE), (fresh, BASE * 2)):
        np.testing.assert_allclose(w(result), base + STEP, rtol=1e-6)


@pytest.mark.parametrize("again", ["the same base", "what went up"])
@pytest.mark.parametrize("restarts", [False, True])
async def test_nothing_goes_up_twice_whichever_model_the_upstream_comes_back_to(
    server: servers.Server, tmp_path: Path, outbox: Spool, again: str, *, restarts: bool
) -> None:
    memory = tmp_path / "round.json"
    async with site_at(server) as site:
        trainer = SiteTrainer(site.url, SITE, 2, 60.0, memory, outbox=outbox)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(2)
        one = await running
        takes(outbox)  # and the process may end here, between the sending and the next round
        if restarts:
            trainer = SiteTrainer(site.url, SITE, 2, 60.0, memory, outbox=outbox)
        base = BASE if again == "the same base" else w(one)
        running = training(trainer, base)
        await site.until(version=3)
        await site.sends(2)
        two = await running
    assert (one.contributions, two.contributions) == (2, 2)
    np.testing.assert_allclose(w(two), base + STEP, rtol=1e-6)


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_was_made_but_never_taken_goes_up_with_what_comes_next(
    server: servers.Server, tmp_path: Path, outbox: Spool, *, restarts: bool
) -> None:
    memory = tmp_path / "round.json"
    async with site_at(server) as site:
        trainer = SiteTrainer(site.url, SITE, 2, 60.0, memory, outbox=outbox)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(2)
        await running  # and the process ends before the outbox has it, or the disk is full
        if restarts:
            trainer = SiteTrainer(site.url, SITE, 2, 60.0, memory, outbox=outbox)
        result = await training(trainer, BASE)
        assert result.contributions == 2
        await site.until(version=2, phase="paused")
        # nor then, and there is another model of the upstream's
        result = await training(trainer, BASE * 2)
    assert result.contributions == 2
    np.testing.assert_allclose(w(result), BASE * 2 + STEP, rtol=1e-6)


async def test_an_outbox_that_was_lost_lets_nothing_go_up_again(
    server: servers.Server, tmp_path: Path, outbox: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    memory = tmp_path / "round.json"
    takes(outbox)
    async with site_at(server) as site:
        running = training(SiteTrainer(site.url, SITE, 2, 60.0, memory, outbox=outbox), BASE)
        await site.until(version=1)
        await site.sends(2)
        await running
        takes(outbox)
        with closing(Spool(tmp_path / "new.sqlite")) as fresh:
            again = SiteTrainer(site.url, SITE, 2, 60.0, memory, outbox=fresh)
            running = training(again, BASE)
            await site.until(version=3)
            await site.sends(2)
            result = await running
    assert result.contributions == 2
    np.testing.assert_allclose(w(result), BASE + STEP, rtol=1e-6)
    assert "the outbox has taken other updates" in caplog.text


@pytest.mark.parametrize("restarts", [False, True])
async def test_what_comes_between_two_rounds_goes_up_with_the_next_one(
    server: servers.Server,
    tmp_path: Path,
    outbox: Spool,
    caplog: pytest.LogCaptureFixture,
    *,
    restarts: bool,
) -> None:
    caplog.set_level("INFO", "fedmq.region")
    memory = tmp_path / "round.json"
    async with site_at(server, UNFLUSHED) as site:
        trainer = SiteTrainer(site.url, SITE, 4, 60.0, memory, outbox=outbox)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(2)
        await site.until(version=2)
        await site.sends(2)
        await running
        takes(outbox)
        await site.until(version=3, phase="paused")
        await site.sends(2)
        await site.until(version=4, phase="paused")
        await site.sends(1)  # waits in the buffer
        await site.folds(7)
        if restarts:
            trainer = SiteTrainer(site.url, SITE, 4, 60.0, memory, outbox=outbox)
        running = training(trainer, BASE * 2)
        await site.until(version=5)
        began = (await kept_model(site.redis, SITE, 5)).params
        await site.sends(2)
        result = await running
    np.testing.assert_allclose(began, BASE * 2 + STEP * 1.5, rtol=1e-6)
    assert (result.contributions, result.weight) == (5, 1.0)
    np.testing.assert_allclose(w(result), BASE * 2 + STEP, rtol=1e-6)
    assert "late contributions=3: carried over" in caplog.text


@pytest.mark.parametrize("keeps", [True, False])
async def test_who_starts_again_under_another_model_carries_over_what_the_site_still_tells(
    server: servers.Server,
    tmp_path: Path,
    outbox: Spool,
    caplog: pytest.LogCaptureFixture,
    *,
    keeps: bool,
) -> None:
    """An update was never made of the round, and the upstream has gone on."""
    memory = tmp_path / "round.json"
    kept = msgspec.structs.replace(SPEC, publish=PublishOptions(keep=8 if keeps else 2))
    async with site_at(server, kept) as site:
        first = SiteTrainer(site.url, SITE, 9, 60.0, memory, outbox=outbox)
        running = training(first, BASE)
        for version in (1, 2):
            await site.until(version)
            await site.sends(2)
        await site.until(version=3)
        first.stop()
        with pytest.raises(Stopped, match="the region ends"):
            await running
        running = training(SiteTrainer(site.url, SITE, 6, 60.0, memory, outbox=outbox), BASE * 2)
        for version in range(4, 5 if keeps else 7):
            await site.until(version)
            await site.sends(2)
        result = await running
    assert result.contributions == 6
    np.testing.assert_allclose(w(result), BASE * 2 + STEP, rtol=1e-6)
    assert ("lost contributions=4" in caplog.text) is not keeps


async def test_of_more_than_one_update_takes_the_mean_goes_up_and_the_log_says_what_is_lost(
    server: servers.Server, outbox: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    async with site_at(server, UNFLUSHED) as site:
        trainer = SiteTrainer(site.url, SITE, 2, 60.0, outbox=outbox)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(2)
        await running
        takes(outbox)
        await site.until(version=2, phase="paused")
        for version in (3, 4):  # each pair of the newest version: of weight 1
            await site.sends(2)
            await site.until(version, phase="paused")
        result = await training(trainer, BASE * 2)
    assert result.contributions == 3
    np.testing.assert_allclose(w(result), BASE * 2 + STEP, rtol=1e-6)
    assert "lost contributions=1: more than one update takes" in caplog.text
    assert "--contributions" in caplog.text


@pytest.mark.parametrize("written", [False, True])
async def test_who_dies_while_a_round_begins_carries_over_once(
    server: servers.Server,
    tmp_path: Path,
    outbox: Spool,
    monkeypatch: pytest.MonkeyPatch,
    *,
    written: bool,
) -> None:
    memory = tmp_path / "round.json"
    async with site_at(server) as site:
        trainer = SiteTrainer(site.url, SITE, 2, 60.0, memory, outbox=outbox)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(2)
        await running
        takes(outbox)
        await site.until(version=2, phase="paused")
        await site.sends(2)
        await site.until(version=3, phase="paused")

        def dies(*_arguments: object) -> None:
            raise ValueError("a power cut")

        with monkeypatch.context() as patched:
            patched.setattr(f"fedmq.region.site.{'_folded' if written else 'to_fields'}", dies)
            with pytest.raises(ValueError, match="a power cut"):
                await training(trainer, BASE * 2)
        again = SiteTrainer(site.url, SITE, 4, 60.0, memory, outbox=outbox)
        running = training(again, BASE * 2)
        await site.until(version=4)
        await site.sends(2)
        result = await running
    assert result.contributions == 4
    np.testing.assert_allclose(w(result), BASE * 2 + STEP, rtol=1e-6)


async def test_what_comes_at_the_very_moment_at_which_a_round_begins_is_not_lost(
    server: servers.Server, outbox: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site_at(server) as site:
        trainer = SiteTrainer(site.url, SITE, 2, 60.0, outbox=outbox)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(2)
        await running
        takes(outbox)
        await site.until(version=2, phase="paused")
        waiting = await site.updates(2)
        real = fedmq.region.site.to_fields

        def to_fields_late(body: Any) -> Any:
            """Between the look at the site and the entry in its log."""
            with BlockingRedis(servers.HOST, server.port) as blocking:
                while waiting:
                    blocking.xadd(TaskKeys(SITE).log, real(waiting.pop()))
            return real(body)

        monkeypatch.setattr("fedmq.region.site.to_fields", to_fields_late)
        result = await training(trainer, BASE * 2)
    assert result.contributions == 2
    np.testing.assert_allclose(w(result), BASE * 2 + STEP, rtol=1e-6)


async def test_a_log_that_is_never_still_is_written_into_all_the_same(
    server: servers.Server,
    outbox: Spool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("fedmq.region.site.QUIET_S", 0.0)
    async with site_at(server) as site:
        trainer = SiteTrainer(site.url, SITE, 2, 60.0, outbox=outbox)
        running = training(trainer, BASE)
        await site.until(version=1)
        await site.sends(2)
        await running
        takes(outbox)
        await site.until(version=2, phase="paused")
        waiting = await site.updates(2)
        real = fedmq.region.site.to_fields

        def to_fields_late(body: Any) -> Any:
            with BlockingRedis(servers.HOST, server.port) as blocking:
                while waiting:
                    blocking.xadd(TaskKeys(SITE).log, real(waiting.pop()))
            return real(body)

        monkeypatch.setattr("fedmq.region.site.to_fields", to_fields_late)
        running = training(trainer, BASE * 2)
        await site.until(version=4)
        await site.sends(2)
        result = await running
    assert result.contributions == 2
    np.testing.assert_allclose(w(result), BASE * 2 + STEP, rtol=1e-6)
    assert "lost contributions=2" in caplog.text


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
