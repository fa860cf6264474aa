"""Three radios, a network server that speaks ChirpStack's events, the real adapter, the real fold.

Everything speaks MQTT over one broker. Frames are lost and told twice, a device joins again, and
the adapter is ended and begun anew in the middle of it all.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from aggregator.fold import Fold
from aggregator.state import origin_state
from aggregator.walking import published_part
from broker.lab import LabBroker
from broker.lorawan.adapter import serve
from broker.lorawan.regions import EU868
from broker.lorawan.settings import LorawanSettings
from broker.routing import Routed, route
from fedmq.simulator.network_server import NetworkServer
from fedmq.simulator.radio import Radio
from lifetimes.together import end
from mqtt_session.session import Session, connect
from mqtt_session.settings import MqttSettings
from schemas.codecs import CodecOptions
from schemas.codecs.sq import SQ
from schemas.log import Entry, EntryId, PhaseSet, SpecSet
from schemas.names import Epoch, TaskName
from schemas.params import Params, ParamSpec, TensorSpec
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import PublishOptions, TaskSpec, spec_to_json
from schemas.topics import DEFAULT_PREFIX, TaskTopics
from schemas.wire import encode_manifest

PARAMS = ParamSpec((TensorSpec("W", (30, 8)), TensorSpec("b", (8,))))
SPEC = TaskSpec(
    PARAMS,
    strategy=StrategyOptions(
        buffer_size=12,
        flush_after_s=0.0,
        max_staleness=32,
        staleness=StalenessOptions("constant"),
    ),
    codec=CodecOptions("sq"),
    publish=PublishOptions(lattice=True, step=0.0625, chunk_bytes=64),
)
TOPICS = TaskTopics(DEFAULT_PREFIX, TaskName("pumps"))
EPOCH = Epoch(19)
RATE = EU868.rate(12)
EUIS = [f"70b3d57ed000000{n}" for n in range(3)]


@dataclass
class Server:
    """The fold, as bridge and aggregator would have it: updates in, retained topics out."""

    session: Session
    fold: Fold
    ms: int = 1_000

    async def begin(self) -> None:
        self.fold.apply(Entry(EntryId(self.ms, 0), SpecSet(spec_to_json(SPEC))))
        await self.session.publish(TOPICS.spec, spec_to_json(SPEC), retain=True)
        await self._publish()
        await self.session.subscribe([f"{DEFAULT_PREFIX}/+/up/+/+"], qos=1)

    async def finish(self) -> None:
        self.ms += 1
        self.fold.apply(Entry(EntryId(self.ms, 0), PhaseSet("finished")))
        await self.session.publish(TOPICS.spec, self.fold.changes.spec, retain=True)
        await self._publish()

    async def run(self) -> None:
        while True:
            for message in await self.session.receive():
                routed = route(DEFAULT_PREFIX, message.topic, message.payload, max_bytes=4096)
                assert isinstance(routed, Routed)
                self.ms += 1
                self.fold.apply(Entry(EntryId(self.ms, 0), routed.arrived))
                await self._publish()

    async def _publish(self) -> None:
        changes = self.fold.take_changes()
        for name, blob in changes.beside.items():
            for index, start in enumerate(range(0, len(blob), 64)):
                chunk = blob[start : start + 64]
                await self.session.publish(TOPICS.chunk(name, index), chunk, retain=True)
        if changes.model:
            manifest = encode_manifest(self.fold.state.published.named)
            await self.session.publish(TOPICS.model, manifest, retain=True)

    @property
    def heard(self) -> int:
        tally = self.fold.state.tally
        return tally.folded + tally.duplicates + sum(tally.rejected.values())

    @property
    def model(self) -> Params:
        return published_part(self.fold.state.lattice, PARAMS)


@dataclass
class Air:
    """The radio network: what the gateway hears goes out over MQTT, what comes back goes down."""

    session: Session
    network: NetworkServer
    chance: random.Random
    addresses: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    said: int = 0

    async def run(self) -> None:
        await self.session.subscribe([self.network.commands], qos=1)
        while True:
            for message in await self.session.receive():
                assert self.network.take(message.topic, message.payload)

    async def join(self, eui: str) -> None:
        self.addresses[eui] = self.addresses.get(eui, 0) + 1
        self.counts[eui] = 0
        event = self.network.join(eui, f"{self.addresses[eui]:08x}", 0.0)
        await self.session.publish(event.topic, event.payload)

    async def uplink(self, eui: str, radio: Radio) -> None:
        frame, port, count = radio.frame(RATE.frame_bytes), radio.port, self.counts[eui]
        assert len(frame) <= 51
        self.counts[eui] += 1
        if self.chance.random() < 0.1:
            return
        event = self.network.hear(
            eui,
            dev_addr=f"{self.addresses[eui]:08x}",
            count=count,
            rate=RATE,
            port=port,
            data=frame,
            now_s=0.0,
        )
        for _ in range(2 if self.chance.random() < 0.2 else 1):
            self.said += 1
            await self.session.publish(event.topic, event.payload)

    async def windows(self, eui: str, radio: Radio, now_s: float) -> None:
        found = self.network.answer(eui, RATE, now_s)
        if found is None:
            return
        down, event = found
        await self.session.publish(event.topic, event.payload)
        if self.chance.random() >= 0.1:
            radio.receive(down.port, down.data)


@asynccontextmanager
async def running(*coroutines) -> AsyncIterator[list["asyncio.Task[None]"]]:
    tasks = [asyncio.ensure_future(each) for each in coroutines]
    try:
        yield tasks
        for task in tasks:
            if task.done():
                task.result()
    finally:
        await end(tasks)


async def until(condition, what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
    assert condition(), what


def radios(goal: Params) -> dict[str, Radio]:
    origin = np.zeros(PARAMS.size, np.float32)
    return {
        eui: Radio(
            SPEC,
            origin=origin,
            codec=SQ,
            epoch=EPOCH,
            train=lambda base, _rng: (base + 0.4 * (goal - base), 40),
            rng=np.random.default_rng(number),
        )
        for number, eui in enumerate(EUIS)
    }


async def test_radios_learn_and_their_models_are_bit_identical(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "fedmq.lorawan")
    rng = np.random.default_rng(4)
    goal = rng.standard_normal(PARAMS.size, dtype=np.float32)
    fleet = radios(goal)
    async with LabBroker(port=0) as broker:
        where = MqttSettings(mqtt_port=broker.port)
        network_url = f"mqtt://127.0.0.1:{broker.port}"
        network = NetworkServer(EU868)
        settings = LorawanSettings(
            mqtt_port=broker.port,
            task="pumps",
            application=network.application,
            network_url=network_url,
        )
        async with (
            connect(where, client_id="server", clean=True) as near,
            connect(where, client_id="network", clean=True) as far,
        ):
            server = Server(near, Fold(origin_state(EPOCH, np.zeros(PARAMS.size, np.float32))))
            air = Air(far, network, random.Random(2))
            await server.begin()
            async with running(server.run(), air.run()):
                first = asyncio.ensure_future(serve(settings, rng=random.Random(1)))
                await until(lambda: "connected" in caplog.text, "the adapter connects")
                for eui in EUIS:
                    await air.join(eui)
                await rounds(server, air, fleet, 20, 0)
                assert any(radio.adopted for radio in fleet.values())
                await end([first])
                await air.join(EUIS[1])
                fleet[EUIS[1]].restart()
                caplog.clear()
                async with running(serve(settings, rng=random.Random(1))):
                    await until(lambda: "connected" in caplog.text, "another adapter connects")
                    await rounds(server, air, fleet, 40, 20)
                    await server.finish()
                    await rounds(server, air, fleet, 40, 60)
            tally = server.fold.state.tally
            assert tally.duplicates > 0
            assert set(tally.rejected) == {"finished"}
            assert server.heard == air.said
            newest = server.model.tobytes()
            assert all(radio.params.tobytes() == newest for radio in fleet.values())
            assert not any(radio.wrong for radio in fleet.values())
            assert "diff" in caplog.text
            assert "keyframe" not in caplog.text  # it knew what its predecessor had sent
            assert np.linalg.norm(server.model - goal) < 0.3 * np.linalg.norm(goal)
    boots = {boot for device, boot in server.fold.state.windows if device == EUIS[1]}
    assert len(boots) == 2  # it has joined twice, and FCnt began anew


async def rounds(server: Server, air: Air, fleet: dict[str, Radio], count: int, after: int) -> None:
    """Every device sends once a round; an hour passes, so that every gateway band is free."""
    for number in range(after, after + count):
        for eui, radio in fleet.items():
            await air.uplink(eui, radio)
            await until(lambda: server.heard == air.said, "every frame is folded or known")
            await air.windows(eui, radio, 3600.0 * (3 * number + EUIS.index(eui)))


THINGS = (
    b'{"end_device_ids": {"dev_eui": "70B3D57ED0000001", "dev_addr": "00BCB929"},'
    b' "uplink_message": {"f_port": 1, "f_cnt": 4, "frm_payload": "AgAAMAECAwQFBgcICQoLDA==",'
    b' "session_key_id": "AX"}}'
)


async def heard(session: Session) -> list[bytes]:
    async with asyncio.timeout(20):
        return [message.payload for message in await session.receive()]


async def test_what_the_things_stack_says_arrives_and_its_weaker_promise_is_told(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.INFO, "fedmq.lorawan")
    async with LabBroker(port=0) as broker:
        settings = LorawanSettings(
            mqtt_port=broker.port,
            task="pumps",
            server="thethings",
            application="pumps@ttn",
            network_url=f"mqtt://127.0.0.1:{broker.port}",
        )
        where = MqttSettings(mqtt_port=broker.port)
        async with (
            running(serve(settings, rng=random.Random(1))),
            connect(where, client_id="both", clean=True) as session,
        ):
            await session.subscribe([f"{DEFAULT_PREFIX}/pumps/up/+/70b3d57ed0000001"], qos=1)
            await until(lambda: "connected" in caplog.text, "the adapter connects")
            await session.publish("v3/pumps@ttn/devices/pump-1/up", THINGS, qos=0)
            (update,) = await heard(session)
    assert update[:1] == b"\3"
    assert update[5:6] == b"\5"  # FCnt 4
    assert update[6:].hex() == "020000300102030405060708090a0b0c"
    assert "weaker_promise server=thethings" in caplog.text


async def test_no_event_is_lost_while_no_adapter_is_there(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "fedmq.lorawan")
    network = NetworkServer(EU868)
    async with LabBroker(port=0) as broker:
        settings = LorawanSettings(
            mqtt_port=broker.port,
            task="pumps",
            application=network.application,
            network_url=f"mqtt://127.0.0.1:{broker.port}",
        )
        async with running(serve(settings, rng=random.Random(1))):
            await until(lambda: "connected" in caplog.text, "the adapter connects")
        far = connect(MqttSettings(mqtt_port=broker.port), client_id="both", clean=True)
        async with far as session:
            for count in range(3):
                event = network.hear(
                    EUIS[0],
                    dev_addr="01",
                    count=count,
                    rate=RATE,
                    port=1,
                    data=bytes(20),
                    now_s=0.0,
                )
                await session.publish(event.topic, event.payload)
            await session.subscribe([f"{DEFAULT_PREFIX}/pumps/up/+/+"], qos=1)
            async with running(serve(settings, rng=random.Random(1))):
                seqs: set[int] = set()
                while len(seqs) < 3:
                    seqs |= {update[5] for update in await heard(session)}
    assert seqs == {1, 2, 3}
