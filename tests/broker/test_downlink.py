import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import servers
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN
from redis.asyncio import Redis

from broker.downlink import Downlink, newest_only
from broker.queue import Queue
from broker.settings import BridgeSettings
from fedmq.simulator.links import LinkModel
from fedmq.simulator.proxy import open_proxy
from lifetimes.together import end
from mqtt_session.session import connect
from redis_session.connection import connect as connect_redis
from schemas.keys import TaskKeys
from schemas.names import TaskName
from schemas.outbox import Record, Say, Spread, Sweep
from schemas.outbox import to_fields as record_fields

SAYS = st.builds(
    Say, st.sampled_from(["model", "metrics", "receipt/a"]), st.binary(max_size=2), st.booleans()
)
BLOBS = st.sampled_from(["k1-1", "k1-2"])
RECORDS: st.SearchStrategy[list[Record]] = st.lists(
    st.one_of(SAYS, st.builds(Spread, BLOBS, st.just(64)), st.builds(Sweep, BLOBS, st.just(3))),
    max_size=20,
)


def retained_after(records: Sequence[Record]) -> dict[str, bytes]:
    """What a broker retains below the task's topic."""
    return {r.suffix: r.payload for r in records if isinstance(r, Say) and r.retain}


def always_carried(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if not (isinstance(r, Say) and r.retain)]


@LEAN
@given(records=RECORDS)
def test_a_broker_retains_the_same_in_the_end(records):
    assert retained_after(newest_only(records)) == retained_after(records)


@LEAN
@given(records=RECORDS)
def test_each_retained_topic_is_said_once(records):
    said = [r.suffix for r in newest_only(records) if isinstance(r, Say) and r.retain]
    assert len(said) == len(set(said))


@LEAN
@given(records=RECORDS)
def test_blobs_and_what_is_not_retained_are_all_carried_in_their_order(records):
    assert always_carried(newest_only(records)) == always_carried(records)


@LEAN
@given(records=RECORDS)
def test_nothing_changes_its_place(records):
    rest = iter(enumerate(records))
    for kept in newest_only(records):
        assert any(kept == record for _, record in rest), "in the order of the outbox"


@LEAN
@given(records=RECORDS)
def test_doing_it_twice_changes_nothing(records):
    assert newest_only(newest_only(records)) == newest_only(records)


def test_a_manifest_still_comes_after_its_own_blob_and_before_the_sweep_of_the_old_one() -> None:
    old, new = Say("model", b"1", retain=True), Say("model", b"2", retain=True)
    records = [Spread("k1-1", 64), old, Spread("k1-2", 64), new, Sweep("k1-1", 3)]
    assert newest_only(records) == [Spread("k1-1", 64), Spread("k1-2", 64), new, Sweep("k1-1", 3)]


async def test_a_bridge_that_lost_its_lease_stops_carrying(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedmq.bridge")
    task = TaskName("pumps")
    key = TaskKeys(task).downlink
    with servers.mosquitto(tmp_path) as broker, servers.redis_server(tmp_path) as store:
        url = f"redis://{servers.HOST}:{store.port}/0"
        settings = BridgeSettings(mqtt_port=broker.port, redis_url=url, lease_s=0.2)
        async with (
            asyncio.timeout(30),
            connect_redis(url) as redis,
            connect(settings, client_id="bridge", clean=True) as session,
        ):
            queue = Queue(redis, "me")
            await queue.begin()
            carrying = asyncio.create_task(Downlink(session, queue, task, settings).run())
            while await redis.get(key) != b"me":
                await asyncio.sleep(0.01)
            await redis.set(key, "another")
            while "downlink_lost task=pumps" not in caplog.text:
                assert not carrying.done(), carrying
                await asyncio.sleep(0.01)
            assert await redis.get(key) == b"another"
            await end([carrying])


# -- a slow link, and a lease that is lost on the way ------------------------------------------


@asynccontextmanager
async def carrying(
    tmp_path: Path, records: Sequence[Record], *, delay_s: float
) -> AsyncIterator[tuple[Redis, aiomqtt.Client]]:
    """A downlink that carries an outbox over a link with a delay; and somebody who listens."""
    with servers.mosquitto(tmp_path) as broker, servers.redis_server(tmp_path) as store:
        url = f"redis://{servers.HOST}:{store.port}/0"
        model = LinkModel(delay_s=delay_s)
        async with (
            asyncio.timeout(60),
            open_proxy(broker.port, model, random.Random(1)) as link,
            connect_redis(url) as redis,
            aiomqtt.Client(servers.HOST, broker.port) as witness,
        ):
            for number, record in enumerate(records, 1):
                fields: Any = record_fields(record)
                await redis.xadd(TaskKeys(TASK).outbox, fields, id=f"1-{number}")
            await witness.subscribe(f"fedmq/v1/{TASK}/#", qos=1)
            settings = BridgeSettings(mqtt_port=link.port, redis_url=url, lease_s=0.4)
            async with connect(settings, client_id="bridge", clean=True) as session:
                queue = Queue(redis, "me:400")
                await queue.begin()
                task = asyncio.create_task(Downlink(session, queue, TASK, settings).run())
                try:
                    yield redis, witness
                finally:
                    await end([task])


TASK = TaskName("pumps")
RECEIPTS = [Say(f"receipt/d{number}", b"%d" % number, retain=True) for number in range(400)]


async def test_a_batch_that_takes_many_leases_is_carried_under_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedmq.bridge")
    async with carrying(tmp_path, RECEIPTS, delay_s=0.02) as (redis, _):
        while await redis.get(TaskKeys(TASK).said) != b"1-400":
            await asyncio.sleep(0.02)
    assert "downlink_lost" not in caplog.text


async def test_who_loses_the_lease_in_mid_batch_says_nothing_more_and_asks_the_other_to(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedmq.bridge")
    async with carrying(tmp_path, RECEIPTS, delay_s=0.04) as (redis, witness):
        messages = aiter(witness.messages)
        await anext(messages)
        await redis.set(TaskKeys(TASK).downlink, "another:60000")
        while "downlink_lost task=pumps" not in caplog.text:
            await asyncio.sleep(0.01)
        while not await redis.exists(TaskKeys(TASK).again):
            await asyncio.sleep(0.01)
        await witness.publish(f"fedmq/v1/{TASK}/end", b"", qos=1)
        heard = []
        async for message in messages:
            if str(message.topic).endswith("/end"):
                break
            heard.append(message.payload)
        assert len(heard) < len(RECEIPTS) - 10
        assert await redis.get(TaskKeys(TASK).said) is None


async def test_who_is_asked_again_says_what_must_be_retained_once_more(tmp_path: Path) -> None:
    async with carrying(tmp_path, RECEIPTS[:1], delay_s=0.0) as (redis, witness):
        while await redis.get(TaskKeys(TASK).said) != b"1-1":
            await asyncio.sleep(0.02)
        await redis.set(TaskKeys(TASK).manifest, b"the newest")
        await Queue(redis, "other:400").ask_again(TASK)
        async for message in witness.messages:
            if str(message.topic).endswith("/model"):
                assert message.payload == b"the newest"
                break


class Wire:
    """A session that notes what is published, and how much at once."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.open = self.most = self.waits = 0

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        assert retain
        assert payload
        self.topics.append(topic)
        self.waits += not self.open
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0)
        self.open -= 1


class Shop:
    """A queue that knows what stands."""

    async def standing(self, _task: TaskName) -> tuple[list[tuple[str, bytes]], dict[str, int]]:
        return [("model", b"m")], {f"d1-{number}-0": 64 for number in range(100)} | {"k1-9": 64}

    async def blob(self, _task: TaskName, name: str) -> bytes | None:
        return None if name == "d1-3-0" else bytes([1]) * (100 if name == "k1-9" else 9)


async def test_many_small_blobs_share_a_window_and_are_there_before_the_manifest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wire = Wire()
    settings = BridgeSettings(redis_url="redis://nowhere", lease_s=60)
    session: Any = wire
    shop: Any = Shop()
    downlink = Downlink(session, shop, TASK, settings)
    monkeypatch.setattr(downlink, "_make_sure", lambda: asyncio.sleep(0))
    monkeypatch.setattr(downlink, "_check", lambda: None)
    await downlink._assert_standing()
    blobs = [topic.rpartition("/blob/")[2] for topic in wire.topics[:-1]]
    there = [f"d1-{number}-0/0" for number in range(100) if number != 3]
    assert blobs == [*there, "k1-9/0", "k1-9/1"]
    assert wire.topics[-1].endswith("/model")
    assert wire.most == 16
    assert wire.waits == -(-len(blobs) // 16) + 1, "a round trip a window, and one for the manifest"
