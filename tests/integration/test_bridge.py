"""The bridge acknowledges to the broker only what Redis has: real mosquitto, real Redis."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import servers
from redis.asyncio import Redis

import broker.bridge
from aggregator.tasks import create_task
from broker.queue import Queue
from broker.routing import Routed, Unroutable
from broker.settings import BridgeSettings
from lifetimes.together import end
from mqtt_session.session import Inbound, Session
from schemas.keys import LOST, TaskKeys
from schemas.names import DeviceId, TaskName, shard_of
from schemas.outcomes import Reason
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec
from schemas.topics import TaskTopics
from schemas.wire import decode_receipt

TASK = TaskName("carry")
DEVICE = DeviceId("d")
UP = f"fedmq/v1/{TASK}/up/{shard_of(DEVICE)}/{DEVICE}"
WAVES, WAVE = 14, 15


@pytest.fixture
def post_office(tmp_path: Path) -> Iterator[BridgeSettings]:
    with servers.mosquitto(tmp_path) as mqtt, servers.redis_server(tmp_path) as redis:
        yield BridgeSettings(
            mqtt_port=mqtt.port,
            redis_url=f"redis://127.0.0.1:{redis.port}/0",
            mqtt_connect_timeout_s=5.0,
            max_message_bytes=4096,
        )


@asynccontextmanager
async def running_bridge(settings: BridgeSettings) -> AsyncIterator[None]:
    task = asyncio.create_task(broker.bridge.serve(settings, rng=random.Random(1)))
    try:
        yield
    finally:
        await end([task])


@asynccontextmanager
async def redis_with_task(settings: BridgeSettings) -> AsyncIterator[Redis]:
    import numpy as np

    async with Redis.from_url(settings.redis_url) as redis:
        spec = TaskSpec(ParamSpec((TensorSpec("w", (1,)),)))
        await create_task(redis, TASK, spec, np.zeros(1, dtype=np.float32), epoch=1)
        yield redis


async def publish(settings: BridgeSettings, messages: Sequence[tuple[str, bytes]]) -> None:
    """Publish once each at QoS 1; nobody sends anything again."""
    async with aiomqtt.Client(settings.mqtt_host, settings.mqtt_port) as client:
        for topic, payload in messages:
            await client.publish(topic, payload, qos=1)


async def payloads_in_log(redis: Redis) -> list[bytes]:
    entries: Any = await redis.xrange(TaskKeys(TASK).log)
    return [fields[b"p"] for _, fields in entries if fields[b"k"] == b"up"]


async def eventually(condition: Any, what: str, patience_s: float = 20.0) -> None:
    try:
        async with asyncio.timeout(patience_s):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


class Unreliable(Queue):
    """A Redis that is lost again and again: before it has a batch, and after."""

    calls = 0

    async def append(self, messages: Sequence[Routed | Unroutable]) -> list[bool]:
        Unreliable.calls += 1
        if Unreliable.calls % 4 == 1 and Unreliable.calls < 12:
            raise ConnectionError("lost before")
        known = await super().append(messages)
        if Unreliable.calls % 4 == 3 and Unreliable.calls < 12:
            raise ConnectionError("lost after")
        return known


async def everything_arrives(settings: BridgeSettings) -> None:
    async with redis_with_task(settings) as redis, running_bridge(settings):

        async def subscribed() -> bool:
            await publish(settings, [(UP, b"hello")])
            return b"hello" in await payloads_in_log(redis)

        await eventually(subscribed, "the bridge hears")
        for wave in range(WAVES):
            sent = {b"%d" % n for n in range(wave * WAVE, (wave + 1) * WAVE)}
            await publish(settings, [(UP, payload) for payload in sorted(sent)])

            async def all_there(sent: set[bytes] = sent) -> bool:
                return sent <= set(await payloads_in_log(redis))

            await eventually(all_there, "every message that the broker took is in the log", 10)


async def test_what_the_broker_took_reaches_the_log_though_redis_is_lost_again_and_again(
    post_office: BridgeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Unreliable.calls = 0
    monkeypatch.setattr(broker.bridge, "Queue", Unreliable)
    await everything_arrives(post_office)
    assert Unreliable.calls >= 12


async def test_the_harness_finds_puback_before_xadd(
    post_office: BridgeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = broker.bridge.Bridge._lift

    async def hasty(
        self: broker.bridge.Bridge,
        session: Session,
        queue: Queue,
        batch: list[Inbound],
    ) -> None:
        session.acknowledge(batch)
        await asyncio.sleep(0.01)  # the acknowledgement leaves
        await honest(self, session, queue, batch)

    Unreliable.calls = 0
    monkeypatch.setattr(broker.bridge, "Queue", Unreliable)
    monkeypatch.setattr(broker.bridge.Bridge, "_lift", hasty)
    with pytest.raises(pytest.fail.Exception, match="never happened"):
        await everything_arrives(post_office)


async def test_an_update_for_an_unknown_task_is_kept_and_answered(
    post_office: BridgeSettings,
) -> None:
    settings = post_office
    topic = f"fedmq/v1/nowhere/up/{shard_of(DEVICE)}/{DEVICE}"
    async with (
        redis_with_task(settings) as redis,
        running_bridge(settings),
        aiomqtt.Client(settings.mqtt_host, settings.mqtt_port) as device,
    ):
        await device.subscribe(f"fedmq/v1/nowhere/receipt/{DEVICE}", qos=1)

        async def answered() -> bool:
            await publish(settings, [(topic, b"lost")])
            return bool(await redis.xlen(LOST)) and bool(len(device.messages))

        await eventually(answered, "a receipt")
        message = await anext(aiter(device.messages))
        assert decode_receipt(message.payload).outcome == Reason.UNKNOWN_TASK
        ((_, fields), *_) = await redis.xrange(LOST)
        assert fields[b"p"] == b"lost"
        assert fields[b"reason"] == b"unknown_task"


async def test_of_an_oversized_message_only_the_head_is_carried(
    post_office: BridgeSettings,
) -> None:
    settings = post_office
    async with redis_with_task(settings) as redis, running_bridge(settings):

        async def carried() -> bool:
            await publish(settings, [(UP, bytes(10_000))])
            return bool(await payloads_in_log(redis))

        await eventually(carried, "the head of the message")
        entries: Any = await redis.xrange(TaskKeys(TASK).log)
        fields = entries[-1][1]
        assert (len(fields[b"p"]), fields[b"n"]) == (4096, b"10000")


async def test_a_retained_topic_that_the_broker_lost_is_asserted_again(
    post_office: BridgeSettings,
) -> None:
    settings = post_office
    async with redis_with_task(settings) as redis:
        keys = TaskKeys(TASK)
        await redis.set(keys.manifest, b"manifest")
        await redis.set(keys.blob("k1-0"), b"x" * 100)
        await redis.hset(keys.blobs, "k1-0", "64")
        async with (
            running_bridge(settings),
            aiomqtt.Client(settings.mqtt_host, settings.mqtt_port) as device,
        ):
            await device.subscribe(f"fedmq/v1/{TASK}/#", qos=1)
            found: dict[str, bytes] = {}
            async with asyncio.timeout(10):
                async for message in device.messages:
                    found[str(message.topic)] = message.payload
                    if f"fedmq/v1/{TASK}/model" in found:
                        break
        assert found[f"fedmq/v1/{TASK}/blob/k1-0/0"] == b"x" * 64
        assert found[f"fedmq/v1/{TASK}/blob/k1-0/1"] == b"x" * 36


async def test_who_said_hello_before_the_task_was_made_is_known_all_the_same(
    post_office: BridgeSettings,
) -> None:
    state = TaskTopics("fedmq/v1", TASK).state(DEVICE)
    where = (post_office.mqtt_host, post_office.mqtt_port)
    async with aiomqtt.Client(*where) as device, running_bridge(post_office):
        await device.publish(state, b'{"online":true,"boot":7}', qos=1, retain=True)
        async with Redis.from_url(post_office.redis_url) as redis:

            async def refused() -> bool:
                await publish(post_office, [(UP, b"hello")])
                return bool(await redis.exists(LOST))

            await eventually(refused, "the bridge is there, and knows no task")
        async with redis_with_task(post_office) as redis:

            async def known() -> bool:
                return bool(await redis.hexists(TaskKeys(TASK).presence, DEVICE))

            await eventually(known, "the device is known")
