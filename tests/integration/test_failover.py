"""Sentinel replaces the primary: the epoch is raised, or promises have waited for the replica."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import pytest
import servers
from redis.asyncio import Redis
from redis.exceptions import RedisError

from aggregator.service import serve as serve_aggregator
from aggregator.settings import AggregatorSettings
from aggregator.tasks import create_task, last_commit, published_model
from broker.bridge import serve as serve_bridge
from broker.settings import BridgeSettings
from lifetimes.together import end
from redis_session.connection import connect
from schemas.keys import TaskKeys
from schemas.messages import ModelUpdate, Receipt
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName, shard_of
from schemas.outcomes import FOLDED
from schemas.params import ParamSpec, TensorSpec, base_digest, model_digest
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import CodecOptions, TaskSpec
from schemas.wire import decode_receipt, encode_update

TASK = TaskName("watched")
DEVICE = DeviceId("d")
SPEC = TaskSpec(
    params=ParamSpec((TensorSpec("w", (1,)),)),
    strategy=StrategyOptions(buffer_size=1, staleness=StalenessOptions("constant")),
    codec=CodecOptions("float32"),
)
ZERO = np.zeros(1, np.float32)


@dataclass
class Watched:
    """A primary, its replica, and the Sentinel that watches them."""

    primary: servers.Server
    replica: servers.Server
    url: str

    def freeze_replica(self) -> None:
        os.kill(self.replica.process.pid, signal.SIGSTOP)

    def thaw_replica(self) -> None:
        os.kill(self.replica.process.pid, signal.SIGCONT)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    for name in ("primary", "replica"):
        (tmp_path / name).mkdir()
    with servers.redis_server(tmp_path / "primary") as primary:
        follow = ("--replicaof", servers.HOST, str(primary.port), "--repl-diskless-sync-delay", "0")
        with (
            servers.redis_server(tmp_path / "replica", extra=follow) as replica,
            servers.sentinel(tmp_path, primary) as sentinel,
        ):
            url = f"redis+sentinel://{servers.HOST}:{sentinel.port}/fleet/0"
            yield Watched(primary, replica, url)


async def until(condition: Any, what: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not await condition():
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


async def replicated(url: str) -> None:
    """Wait until the replica follows and Sentinel knows it."""
    async with connect(url) as redis:

        async def follows() -> bool:
            found: Any = await redis.info("replication")
            return found.get("slave0", {}).get("state") == "online"

        await until(follows, "the replica follows")
        sentinel = redis._sentinels.sentinels[0]  # type: ignore[attr-defined]

        async def known() -> bool:
            return bool((await sentinel.sentinel_master("fleet"))["num-slaves"])

        await until(known, "Sentinel knows the replica")


@asynccontextmanager
async def running(*coroutines: Any) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        yield
        assert not any(task.done() for task in tasks)
    finally:
        await end(tasks)


async def epoch_and_version(redis: Redis) -> tuple[int, int]:
    model = await published_model(redis, TASK)
    return (0, -1) if model is None else (model.manifest.epoch, model.manifest.version)


def aggregator(url: str, **given: Any) -> Any:
    return serve_aggregator(AggregatorSettings(redis_url=url, lease_s=0.6, **given))


async def failed_over(url: str, old_run_id: str) -> None:
    async def another() -> bool:
        try:
            async with connect(url) as redis:
                found: Any = await redis.info("server")
                return str(found["run_id"]) != old_run_id
        except (RedisError, OSError):
            return False

    await until(another, "another server is the primary")


async def run_id(url: str) -> str:
    async with connect(url) as redis:
        found: Any = await redis.info("server")
        return str(found["run_id"])


@pytest.mark.parametrize(("after_failover", "raised"), [("epoch", 1), ("keep", 0)])
async def test_after_a_failover_the_epoch_is_raised_if_that_is_wanted(
    watched: Watched, after_failover: str, raised: int
) -> None:
    await replicated(watched.url)
    async with connect(watched.url) as redis:
        await create_task(redis, TASK, SPEC, ZERO, epoch=7)
    async with running(aggregator(watched.url, after_failover=after_failover)):

        async def noted() -> bool:
            async with connect(watched.url) as redis:
                known = await redis.hexists(TaskKeys(TASK).origin, "failovers")
                return known and await epoch_and_version(redis) == (7, 0)

        await until(noted, "version 0 is published, and the failovers so far are noted")
        async with connect(watched.url) as redis:
            await redis.wait(1, 5000)
        before = await run_id(watched.url)
        watched.primary.kill()
        await failed_over(watched.url, before)

        async def lives_on() -> bool:
            try:
                async with connect(watched.url) as redis:
                    beat: Any = {"k": "tick"}
                    await redis.xadd(TaskKeys(TASK).log, beat)
                    await asyncio.sleep(0.2)
                    epoch, _ = await epoch_and_version(redis)
                    held = await redis.exists(TaskKeys(TASK).holder)
                    committed = (await last_commit(redis, TASK)).epoch
                    return held and (epoch, committed) == (7 + raised, 7 + raised)
            except (RedisError, OSError):  # Sentinel may look for a primary once more
                return False

        await until(lives_on, f"the task lives on in epoch {7 + raised}")


def update(seq: int) -> bytes:
    return encode_update(
        ModelUpdate(
            epoch=Epoch(7),
            boot=Boot(9),
            seq=Seq(seq),
            base_version=ModelVersion(0),
            base_digest=base_digest(model_digest(SPEC.params.digest, ZERO)),
            spec_digest=SPEC.params.short_digest,
            codec=0,
            num_examples=1,
            payload=np.ones(1, np.float32).tobytes(),
        )
    )


async def test_no_receipt_is_given_before_the_replica_has_what_it_promises(
    watched: Watched, tmp_path: Path
) -> None:
    await replicated(watched.url)
    async with connect(watched.url) as redis:
        await create_task(redis, TASK, SPEC, ZERO, epoch=7)
    with servers.mosquitto(tmp_path) as mqtt:
        bridge = BridgeSettings(
            mqtt_port=mqtt.port, redis_url=watched.url, lease_s=0.6, wait_replicas=1
        )
        jitter = random.Random(1)
        async with (
            running(
                aggregator(watched.url, after_failover="keep"), serve_bridge(bridge, rng=jitter)
            ),
            aiomqtt.Client("127.0.0.1", mqtt.port) as device,
        ):
            await device.subscribe(f"fedmq/v1/{TASK}/receipt/{DEVICE}", qos=1)
            receipts: list[Receipt] = []

            async def listen() -> None:
                async for message in device.messages:
                    receipts.append(decode_receipt(message.payload))  # noqa: PERF401 - while it lasts

            async with running(listen()):

                async def settled(seq: int) -> bool:
                    topic = f"fedmq/v1/{TASK}/up/{shard_of(DEVICE)}/{DEVICE}"
                    await device.publish(topic, update(seq), qos=1)
                    await asyncio.sleep(0.2)
                    return any(r.low >= seq and r.outcome == FOLDED for r in receipts)

                await until(lambda: settled(1), "the first update has its receipt")
                watched.freeze_replica()
                known = len(receipts)

                async def folded() -> bool:
                    await settled(2)
                    async with connect(watched.url) as redis:
                        return (await last_commit(redis, TASK)).tally.folded == 2

                await until(folded, "the second is folded on the primary")
                assert not any(r.low >= 2 for r in receipts[known:]), "no promise as yet"
                watched.thaw_replica()
                await until(lambda: settled(2), "the second has its receipt")
                before = await run_id(watched.url)
                watched.primary.kill()
                await failed_over(watched.url, before)

                async def kept() -> bool:
                    try:
                        async with connect(watched.url) as redis:
                            return (await last_commit(redis, TASK)).tally.folded >= 2
                    except (RedisError, OSError):
                        return False

                await until(kept, "what was promised is there after the failover")
