"""Redis is full, or too much waits in it: devices are told, nothing is lost, and metrics say so."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import numpy as np
import pytest
import servers
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from aggregator import service
from aggregator.segments import unpack
from aggregator.service import serve as serve_aggregator
from aggregator.settings import AggregatorSettings
from aggregator.tasks import create_task, task_status
from broker.bridge import serve
from broker.settings import BridgeSettings
from lifetimes.together import end
from redis_session.connection import connect
from schemas.keys import TaskKeys
from schemas.names import DeviceId, TaskName, shard_of
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec
from schemas.watch import Busy, Metrics, Pressure

TASK = TaskName("busy")
DEVICE = DeviceId("d")
UP = f"fedmq/v1/{TASK}/up/{shard_of(DEVICE)}/{DEVICE}"


@pytest.fixture
def post_office(tmp_path: Path) -> Iterator[BridgeSettings]:
    with servers.mosquitto(tmp_path) as mqtt, servers.redis_server(tmp_path) as redis:
        yield BridgeSettings(
            mqtt_port=mqtt.port,
            redis_url=f"redis://127.0.0.1:{redis.port}/0",
            mqtt_connect_timeout_s=5.0,
        )


@dataclass
class Fleet:
    """A device that listens to `busy`, and Redis."""

    client: aiomqtt.Client
    redis: Redis
    heard: list[bytes]
    bridge: "asyncio.Task[None]"

    async def last_is(self, payload: bytes) -> bool:
        return bool(self.heard) and self.heard[-1] == payload

    async def until(self, condition: Any, what: str) -> None:
        try:
            async with asyncio.timeout(30):
                while not await condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"never happened: {what}; busy said {self.heard}")

    async def is_busy(self, why: str) -> bool:
        return bool(self.heard and self.heard[-1]) and busy(self.heard[-1]).why == why

    async def is_carried(self) -> bool:
        return bool(await self.redis.exists(TaskKeys(TASK).downlink))

    async def is_calm(self) -> bool:
        return bool(self.heard) and not self.heard[-1]

    async def stored(self) -> list[bytes]:
        entries: Any = await self.redis.xrange(TaskKeys(TASK).log)
        return [fields[b"p"] for _, fields in entries if fields[b"k"] == b"up"]


def busy(payload: bytes) -> Busy:
    return msgspec.json.decode(payload, type=Busy)


@asynccontextmanager
async def fleet(settings: BridgeSettings) -> AsyncIterator[Fleet]:
    """A bridge that carries, and one device."""
    async with connect(settings.redis_url) as redis:
        spec = TaskSpec(ParamSpec((TensorSpec("w", (1,)),)))
        await create_task(redis, TASK, spec, np.zeros(1, np.float32), epoch=1)
        bridge = asyncio.create_task(serve(settings, rng=random.Random(1)))
        heard: list[bytes] = []
        async with aiomqtt.Client(settings.mqtt_host, settings.mqtt_port) as client:
            await client.subscribe(f"fedmq/v1/{TASK}/busy", qos=1)

            async def listen() -> None:
                async for message in client.messages:
                    heard.append(message.payload)  # noqa: PERF401 - heard while it lasts

            listening = asyncio.create_task(listen())
            here = Fleet(client, redis, heard, bridge)
            try:
                await here.until(here.is_carried, "the bridge is there")
                yield here
            finally:
                await end([bridge, listening])


async def test_a_full_redis_is_told_to_the_fleet_and_what_came_meanwhile_is_taken_afterwards(
    post_office: BridgeSettings,
) -> None:
    async with fleet(post_office) as here:
        await here.redis.config_set("maxmemory", "1")
        for number in range(5):
            await here.client.publish(UP, b"%d" % number, qos=1)
        await here.until(lambda: here.is_busy("full"), "the fleet is told")
        assert await here.stored() == []
        await here.redis.config_set("maxmemory", "0")
        await here.until(here.is_calm, "the fleet may go on")

        async def all_there() -> bool:
            return set(await here.stored()) == {b"0", b"1", b"2", b"3", b"4"}

        await here.until(all_there, "what the broker took is in the log")


async def test_a_task_whose_log_is_too_large_takes_nothing_more_until_it_was_trimmed(
    post_office: BridgeSettings,
) -> None:
    settings = msgspec.structs.replace(post_office, log_max_bytes=200_000)
    async with fleet(settings) as here:
        other: Any = {"k": "up", "d": "x", "s": "0", "p": b"x" * 300_000}
        await here.redis.xadd(TaskKeys(TASK).log, other)
        await here.until(lambda: here.is_busy("behind"), "the fleet is told")
        await here.client.publish(UP, b"too much", qos=1)

        async def dropped() -> bool:
            await here.client.publish(UP, b"too much", qos=1)
            await here.redis.xtrim(TaskKeys(TASK).log, maxlen=0, approximate=False)
            return await here.is_calm()

        await here.until(dropped, "there is room again")

        async def noted() -> bool:
            raw = await here.redis.get(TaskKeys(TASK).pressure)
            found = msgspec.json.decode(raw, type=Pressure)
            return (found.busy, found.busy_times) == ("", 1) and found.busy_s * found.dropped > 0

        await here.until(noted, "it is noted for the metrics")

        async def taken() -> bool:
            await here.client.publish(UP, b"room", qos=1)
            return b"room" in await here.stored()

        await here.until(taken, "what is sent again is taken")


async def test_metrics_say_how_often_and_how_long(post_office: BridgeSettings) -> None:
    async with fleet(post_office) as here:
        await here.redis.set(
            TaskKeys(TASK).pressure,
            b'{"busy":"slow","busy_times":3,"busy_s":4.5,"dropped":2}',
        )
        folding = asyncio.create_task(
            serve_aggregator(AggregatorSettings(redis_url=post_office.redis_url, lease_s=0.5))
        )
        try:

            async def told() -> bool:
                await here.client.publish(UP, b"nonsense", qos=1)
                raw = await here.redis.get(TaskKeys(TASK).metrics)
                if raw is None:
                    return False
                found = msgspec.json.decode(raw, type=Metrics)
                return (found.busy_times, found.busy_s, found.dropped) == (3, 4.5, 2)

            await here.until(told, "metrics tell what the bridge has noted")
        finally:
            await end([folding])


async def test_a_redis_that_is_away_is_told_and_taken_back_when_it_is_there_again(
    post_office: BridgeSettings,
) -> None:
    async with fleet(post_office) as here:
        await here.redis.client_kill_filter(_type="normal", skipme=True)

        async def was_away() -> bool:
            return any(payload and busy(payload).why == "away" for payload in here.heard)

        await here.until(was_away, "it is told that Redis is away")
        await here.until(here.is_calm, "it is there again")

        async def counted() -> bool:
            raw = await here.redis.get(TaskKeys(TASK).pressure)
            found = msgspec.json.decode(raw, type=Pressure) if raw else Pressure()
            return (found.busy, found.busy_times) == ("", 1) and found.busy_s > 0

        await here.until(counted, "it is counted")


async def test_a_bridge_that_is_stopped_takes_back_that_devices_must_wait(
    post_office: BridgeSettings,
) -> None:
    async with fleet(post_office) as here:
        await here.redis.config_set("maxmemory", "1")
        await here.client.publish(UP, b"one", qos=1)
        await here.until(lambda: here.is_busy("full"), "the fleet is told")
        await end([here.bridge])
        await here.until(here.is_calm, "it is taken back")


async def test_what_a_dead_bridge_has_left_is_taken_back_by_one_that_is_well(
    post_office: BridgeSettings,
) -> None:
    async with fleet(post_office) as here:
        left = msgspec.json.encode(Busy("slow", 0.2, 1))
        await here.client.publish(f"fedmq/v1/{TASK}/busy", left, qos=1, retain=True)
        await here.until(lambda: here.is_busy("slow"), "it stands there")
        await here.until(here.is_calm, "it is taken back")
        await here.client.publish(f"fedmq/v1/{TASK}/busy", b"\xff", qos=1, retain=True)
        await here.until(lambda: here.last_is(b"\xff"), "nonsense stands there")
        await here.until(here.is_calm, "it is taken back too")


# -- memory ------------------------------------------------------------------------------------


async def memory(redis: Redis) -> tuple[int, int]:
    info: Any = await redis.info("memory")
    return info["used_memory"], info["maxmemory"]


async def test_the_fleet_is_told_before_redis_refuses_and_what_is_under_way_is_taken(
    post_office: BridgeSettings,
) -> None:
    async with fleet(post_office) as here:
        for number in range(16):
            await here.redis.hset("ballast", str(number), bytes(500_000))
        used, _ = await memory(here.redis)
        await here.redis.config_set("maxmemory", round(used / 0.95))
        await here.until(lambda: here.is_busy("full"), "the fleet is told in time")
        await here.client.publish(UP, b"under way", qos=1)

        async def taken() -> bool:
            return await here.stored() == [b"under way"]

        await here.until(taken, "there was still room for it")
        assert await here.is_busy("full")
        await here.redis.delete("ballast")
        await here.until(here.is_calm, "there is room again")


@pytest.fixture(params=["redis", "valkey"])
def bounded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BridgeSettings]:
    """Both servers: what each allows when it is full differs."""
    run = servers.valkey if request.param == "valkey" else servers.redis_server
    with servers.mosquitto(tmp_path) as mqtt, run(tmp_path, appendfsync="no") as redis:
        yield BridgeSettings(
            mqtt_port=mqtt.port,
            redis_url=f"redis://127.0.0.1:{redis.port}/0",
            mqtt_connect_timeout_s=5.0,
        )


async def filled(redis: Redis) -> int:
    """Fill the log until Redis refuses; tells how many entries it took."""
    used, _ = await memory(redis)
    await redis.config_set("maxmemory", used + 6_000_000)
    other: Any = {"k": "up", "d": DEVICE, "s": shard_of(DEVICE), "p": bytes(8000)}
    for count in range(10_000):
        try:
            await redis.xadd(TaskKeys(TASK).log, other)
        except OutOfMemoryError:
            return count
    pytest.fail("Redis was never full")


@pytest.mark.parametrize("archives", ["", "archive"])
async def test_an_aggregator_that_comes_to_a_full_redis_makes_room_again(
    bounded: BridgeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archives: str
) -> None:
    monkeypatch.setattr(service, "TIDY_S", 0.3)
    folder = tmp_path / "kept"
    settings = AggregatorSettings(
        redis_url=bounded.redis_url,
        lease_s=1.0,
        log_keep_bytes=100_000,
        dead_keep_bytes=50_000,
        archive_url=str(folder) if archives else "",
        archive_seconds=0.3,
        archive_bytes=500_000,
    )
    keys = TaskKeys(TASK)
    async with fleet(bounded) as here:
        for _ in range(2):  # from the origin, then from a checkpoint
            before: Any = await here.redis.xinfo_stream(keys.log)
            count = await filled(here.redis)
            await here.until(lambda: here.is_busy("full"), "the fleet is told")
            await here.client.publish(UP, b"later", qos=1)
            folding = asyncio.create_task(serve_aggregator(settings))
            try:

                async def taken(total: int = before["entries-added"] + count + 1) -> bool:
                    used, most = await memory(here.redis)
                    info: Any = await here.redis.xinfo_stream(keys.log)
                    return used < 0.85 * most and info["entries-added"] >= total

                await here.until(taken, "there is room, and the bridge takes what it held back")
                await here.until(here.is_calm, "the fleet may go on")

                async def folded() -> bool:
                    return (await task_status(here.redis, TASK))["updates_stored"] == 0

                await here.until(folded, "all of it is folded")
            finally:
                await end([folding])
        info: Any = await here.redis.xinfo_stream(keys.log)
        if archives:
            files = sorted(folder.glob("**/*.seg"))
            ids = [
                str(e.id) for file in files for e in unpack(file.name, file.read_bytes()).entries
            ]
            left = {entry_id.decode() for entry_id, _ in await here.redis.xrange(keys.log)}
            assert len({*ids} | left) == info["entries-added"], "what was trimmed was archived"
