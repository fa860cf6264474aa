"""Several bridges and aggregators at once; each may stop, die or freeze, and nothing is missing."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import numpy as np
import pytest
import servers
from integration.stack import Process, fedmq
from redis.asyncio import Redis

import broker.bridge
from aggregator.tasks import create_task, delete_task, task_status
from broker.bridge import serve
from broker.queue import Queue
from broker.settings import BridgeSettings
from lifetimes.together import end
from redis_session.connection import connect
from schemas.keys import TaskKeys
from schemas.names import DeviceId, TaskName, shard_of
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec

TASK = TaskName("shared")
DEVICES = [DeviceId(f"d{n}") for n in range(12)]


@pytest.fixture
def office(tmp_path: Path) -> Iterator[BridgeSettings]:
    with servers.mosquitto(tmp_path) as mqtt, servers.redis_server(tmp_path) as redis:
        yield BridgeSettings(
            mqtt_port=mqtt.port,
            redis_url=f"redis://127.0.0.1:{redis.port}/0",
            mqtt_connect_timeout_s=5.0,
            lease_s=0.5,
        )


@asynccontextmanager
async def task_at(settings: BridgeSettings) -> AsyncIterator[Redis]:
    async with connect(settings.redis_url) as redis:
        spec = TaskSpec(ParamSpec((TensorSpec("w", (1,)),)))
        await create_task(redis, TASK, spec, np.zeros(1, np.float32), epoch=1)
        yield redis


def with_shards(settings: BridgeSettings, shards: str, client_id: str) -> BridgeSettings:
    return msgspec.structs.replace(settings, shards=shards, client_id=client_id)


@asynccontextmanager
async def bridges(*settings: BridgeSettings) -> AsyncIterator[list["asyncio.Task[None]"]]:
    running = [asyncio.create_task(serve(each, rng=random.Random(1))) for each in settings]
    try:
        yield running
    finally:
        await end(running)


async def stored(redis: Redis) -> list[tuple[bytes, bytes]]:
    entries: Any = await redis.xrange(TaskKeys(TASK).log)
    return [(f[b"d"], f[b"p"]) for _, f in entries if f[b"k"] == b"up"]


async def until(condition: Any, what: str) -> None:
    try:
        async with asyncio.timeout(60):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


async def publish(settings: BridgeSettings, payload: bytes) -> None:
    """One message of every device."""
    async with aiomqtt.Client(settings.mqtt_host, settings.mqtt_port) as client:
        for device in DEVICES:
            topic = f"fedmq/v1/{TASK}/up/{shard_of(device)}/{device}"
            await client.publish(topic, payload, qos=1)


async def heard_of_all(redis: Redis, settings: BridgeSettings, payload: bytes) -> None:
    async def all_there() -> bool:
        await publish(settings, payload)
        found = {device for device, data in await stored(redis) if data == payload}
        return found == {device.encode() for device in DEVICES}

    await until(all_there, f"{payload!r} of every device is in the log")


async def test_two_bridges_share_the_shards_and_each_message_is_carried_once(
    office: BridgeSettings,
) -> None:
    low, high = with_shards(office, "0-7", "low"), with_shards(office, "8-f", "high")
    async with task_at(office) as redis, bridges(low, high):
        await heard_of_all(redis, office, b"hello")
        await publish(office, b"once")

        async def all_there() -> bool:
            return sum(data == b"once" for _, data in await stored(redis)) == len(DEVICES)

        await until(all_there, "every message is in the log")
        await heard_of_all(redis, office, b"later")
        assert sum(data == b"once" for _, data in await stored(redis)) == len(DEVICES)


async def test_a_bridge_that_comes_back_with_other_shards_leaves_those_it_had(
    office: BridgeSettings,
) -> None:
    async with task_at(office) as redis:
        async with bridges(with_shards(office, "", "one")):
            await heard_of_all(redis, office, b"all")
        first = with_shards(office, shard_of(DEVICES[0]), "one")
        async with bridges(first):
            mine = {d.encode() for d in DEVICES if shard_of(d) == shard_of(DEVICES[0])}

            async def heard() -> bool:
                await publish(office, b"some")
                return any(data == b"some" for _, data in await stored(redis))

            await until(heard, "the bridge carries again")
            await publish(office, b"last")

            async def last() -> bool:
                return any(data == b"last" for _, data in await stored(redis))

            await until(last, "the last is in the log")
            assert {device for device, data in await stored(redis) if data == b"last"} == mine


async def test_only_one_bridge_carries_the_way_down_and_another_takes_over(
    office: BridgeSettings,
) -> None:
    one, two = with_shards(office, "0-7", "one"), with_shards(office, "8-f", "two")
    async with task_at(office) as redis, bridges(one, two) as running:
        key = TaskKeys(TASK).downlink
        holders: set[bytes] = set()

        async def held() -> bool:
            found = await redis.get(key)
            holders.update([found] if found else [])
            return found is not None

        await until(held, "one holds the way down")
        await end([running[0]])
        await until(held, "one holds the way down")
        await end([running[1]])
        assert await redis.get(key) is None, "who leaves gives it back"


async def test_a_bridge_that_is_stopped_acknowledges_what_it_has_appended(
    office: BridgeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = asyncio.Event()
    honest = Queue.append

    async def slowly(self: Queue, messages: Any) -> list[bool]:
        known = await honest(self, messages)
        if any(getattr(m, "arrived", None) and m.arrived.data == b"last" for m in messages):
            slow.set()
            await asyncio.sleep(0.3)
        return known

    monkeypatch.setattr(broker.bridge.Queue, "append", slowly)
    async with task_at(office) as redis:
        async with bridges(office) as running:
            await heard_of_all(redis, office, b"hello")
            await publish(office, b"last")
            await asyncio.wait_for(slow.wait(), 30)
            await end([running[0]])
        before = sum(data == b"last" for _, data in await stored(redis))
        monkeypatch.setattr(broker.bridge.Queue, "append", honest)
        async with bridges(office):
            await heard_of_all(redis, office, b"again")
        after = [device for device, data in await stored(redis) if data == b"last"]
        assert before > 0
        assert len(after) == len(set(after)), "what was appended was acknowledged, and came once"


# -- a standby ---------------------------------------------------------------------------------


async def test_a_standby_takes_over_from_a_frozen_aggregator_whose_late_commit_is_refused(
    tmp_path: Path,
) -> None:
    with servers.redis_server(tmp_path) as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        command = fedmq("aggregator", "--redis-url", url, "--lease-s", "0.6")
        two = [Process(command, tmp_path / f"aggregator-{n}.log") for n in range(2)]
        async with connect(url) as redis:
            spec = TaskSpec(ParamSpec((TensorSpec("w", (1,)),)))
            await create_task(redis, TASK, spec, np.zeros(1, np.float32), epoch=1)
            key = TaskKeys(TASK).holder
            try:
                two[0].start()

                async def held() -> bool:
                    return await redis.get(key) is not None

                await until(held, "the first holds the task")
                first = await redis.get(key)
                two[1].start()

                async def both_alive() -> bool:
                    return await redis.zcard("fedmq:aggregators") == 2

                await until(both_alive, "the second is there too")
                await asyncio.sleep(0)
                frozen = two[0] if await redis.get(key) == first else two[1]
                holder = await redis.get(key)
                assert frozen._process is not None
                os.kill(frozen._process.pid, signal.SIGSTOP)

                async def taken_over() -> bool:
                    found = await redis.get(key)
                    return found is not None and found != holder

                await until(taken_over, "the other holds the task")
                poison: Any = {"k": "up", "d": "x", "s": "0", "p": b"poison"}
                await redis.xadd(TaskKeys(TASK).log, poison)

                async def folded() -> bool:
                    status: Any = await task_status(redis, TASK)
                    return bool(status["updates_rejected"])

                await until(folded, "the other folds")
                os.kill(frozen._process.pid, signal.SIGCONT)
                log = frozen.log

                async def noticed() -> bool:
                    text = log.read_text()
                    return "commit_refused" in text or "another aggregator" in text

                await until(noticed, "the frozen one notices that it is no longer the holder")
                status: Any = await task_status(redis, TASK)
                assert sum(status["updates_rejected"].values()) == 1
            finally:
                for process in two:
                    if process.running:
                        process.kill()


async def test_a_deleted_task_leaves_no_bridge_behind_that_carries_it_for_ever(
    office: BridgeSettings,
) -> None:
    one, two = with_shards(office, "0-7", "one"), with_shards(office, "8-f", "two")
    async with task_at(office) as redis, bridges(one, two):
        key = TaskKeys(TASK).downlink

        async def held() -> bool:
            return await redis.get(key) is not None

        await until(held, "one holds the way down")
        await delete_task(redis, TASK)

        async def cleared() -> bool:
            return not await redis.sismember("fedmq:leaving", TASK) and not await held()

        await until(cleared, "its topics are cleared")
        again = TaskSpec(ParamSpec((TensorSpec("w", (1,)),)))
        await create_task(redis, TASK, again, np.zeros(1, np.float32), epoch=2)
        await redis.xadd(TaskKeys(TASK).outbox, {"k": "keep", "t": "spec", "p": "new"}, id="1-1")
        async with aiomqtt.Client(office.mqtt_host, office.mqtt_port) as client:
            await client.subscribe(f"fedmq/v1/{TASK}/spec", qos=1)
            async with asyncio.timeout(30):
                async for message in client.messages:
                    if message.payload == b"new":
                        break
