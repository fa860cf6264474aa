"""The adapter between two connections that a test holds in its hands."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.lorawan.adapter import Adapter, Sessions
from broker.lorawan.settings import LorawanSettings
from lifetimes.together import end
from mqtt_session.session import Inbound, LinkError
from schemas.seal import sealed
from schemas.task import spec_to_json
from tests.aggregator.world import make_spec

EUI = "70b3d57ed0000001"
UP = f"application/52f1/device/{EUI}/event/up"


def inbound(topic: str, payload: bytes, mid: int = 1) -> Inbound:
    return Inbound(topic, payload, retain=False, mid=mid, qos=1)


def event(count: int, size: int = 20) -> Inbound:
    told = {"deviceInfo": {"devEui": EUI}, "devAddr": "01", "fCnt": count, "fPort": 1}
    told["data"] = base64.b64encode(bytes(size)).decode()
    return inbound(UP, json.dumps(told).encode(), mid=count + 1)


class Fake:
    """A session: what it hands over, and what was done with it."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[list[Inbound]] = asyncio.Queue()
        self.published: list[tuple[str, bytes]] = []
        self.acknowledged: list[int] = []
        self.open = asyncio.Event()
        self.broken = False

    async def receive(self) -> list[Inbound]:
        return await self.inbox.get()

    async def subscribe(self, filters, *, qos: int) -> None: ...

    async def unsubscribe(self, filters) -> None: ...

    async def publish(self, topic, payload, *, qos: int = 1, retain: bool = False) -> None:
        await self.open.wait()
        if self.broken:
            msg = "gone"
            raise LinkError(msg)
        self.published.append((topic, payload))

    def acknowledge(self, batch) -> None:
        self.acknowledged += [message.mid for message in batch]


@asynccontextmanager
async def adapter() -> AsyncIterator[tuple[Fake, Fake, "asyncio.Task[None]"]]:
    here, there = Fake(), Fake()
    there.open.set()
    running = Adapter(LorawanSettings(task="pumps", application="52f1"))
    task = asyncio.ensure_future(running.use(Sessions(here, there)))
    try:
        yield here, there, task
    finally:
        await end([task])


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_event_is_acknowledged_only_when_fedmqs_broker_has_the_update():
    async with adapter() as (here, there, _):
        await there.inbox.put([event(0), event(1)])
        await settle()
        assert not there.acknowledged
        here.open.set()
        await settle()
        assert there.acknowledged == [1, 2]
        assert [topic.split("/")[-1] for topic, _ in here.published] == [EUI, EUI]


async def test_when_the_update_does_not_arrive_nothing_is_acknowledged():
    async with adapter() as (here, there, task):
        here.broken = True
        here.open.set()
        await there.inbox.put([event(0)])
        with pytest.raises(LinkError):
            await task
        assert not there.acknowledged


async def test_what_is_no_update_is_acknowledged_and_goes_nowhere():
    async with adapter() as (here, there, _):
        garbage = [inbound(UP, b"{", 1), event(1, size=11), event(2, size=4)]
        await there.inbox.put(garbage)
        await settle()
        assert there.acknowledged == [1, 2, 3]
        assert not here.published


async def test_a_task_with_checksums_gets_them():
    async with adapter() as (here, there, _):
        here.open.set()
        spec = spec_to_json(make_spec(checksum=True))
        await here.inbox.put([inbound("fedmq/v1/pumps/spec", spec)])
        await settle()
        await there.inbox.put([event(0)])
        await settle()
        ((_, update),) = here.published
        assert update == sealed(update[:-4], EUI)
