"""A real agent against real brokers; the test plays the server: the parts of such a test."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Final

import aiomqtt
import msgspec
import numpy as np
import pytest
import servers

from edge_agent.agent import Agent
from edge_agent.rounds import entropy_of
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainer import TrainResult
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName
from schemas.outcomes import FOLDED
from schemas.params import ParamSpec, TensorSpec, model_digest
from schemas.task import CodecOptions, TaskSpec, spec_to_json
from schemas.topics import TaskTopics
from schemas.wire import decode_update, encode_manifest, encode_receipt

SIZE: Final = 200  # 800 bytes: 13 chunks of 64, two windows
SPEC: Final = TaskSpec(
    ParamSpec((TensorSpec("w", (SIZE,)),)), codec=CodecOptions(name="topk_int8", density=0.05)
)
DEVICE: Final = DeviceId("pump-1")
TOPICS: Final = TaskTopics("fedmq/v1", TaskName("pumps"))
CHUNK_BYTES: Final = 64
CHUNKS: Final = 13

BROKERS: Final[dict[str, Callable[..., AbstractContextManager[servers.Server]]]] = {
    "lab": servers.lab_broker,
    "mosquitto": servers.mosquitto,
}


@dataclass
class Tiny:
    """A trainer that adds a ramp, or NaN."""

    bad: bool = False
    started_from: list[float] = field(default_factory=list)

    def train(
        self, tensors: Mapping[str, Any], _options: object, _rng: np.random.Generator
    ) -> TrainResult:
        start = tensors["w"]
        self.started_from.append(float(start[0]))
        ramp = np.linspace(0.5, 1, SIZE, dtype=np.float32)
        trained = np.full_like(start, np.nan) if self.bad else start + ramp
        return TrainResult({"w": trained}, num_examples=5, metrics={"loss": 0.25})


@dataclass(frozen=True)
class Model:
    """A model as the server publishes it."""

    version: int
    epoch: int = 1

    @property
    def params(self) -> np.ndarray:
        return np.full(SIZE, 100.0 * self.epoch + self.version, dtype=np.float32)

    @property
    def blob(self) -> str:
        return f"k{self.epoch}-{self.version}"

    @property
    def manifest(self) -> Manifest:
        raw = self.params.tobytes()
        return Manifest(
            epoch=Epoch(self.epoch),
            version=ModelVersion(self.version),
            model_digest=model_digest(SPEC.params.digest, self.params),
            spec_digest=SPEC.params.digest,
            codec=0,
            blob=self.blob,
            blob_digest=sha256(raw).digest(),
            blob_bytes=len(raw),
            chunk_bytes=CHUNK_BYTES,
        )

    def chunk(self, index: int) -> tuple[str, bytes]:
        raw = self.params.tobytes()[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
        return TOPICS.chunk(self.blob, index), raw

    @property
    def chunks(self) -> list[tuple[str, bytes]]:
        return [self.chunk(index) for index in range(CHUNKS)]


class ServerSide:
    """The server, played by the test: what it hears of the device, and what it retains."""

    def __init__(self, client: aiomqtt.Client) -> None:
        self._client = client
        self._inbox: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def listen(self) -> None:
        async for message in self._client.messages:
            assert isinstance(message.payload, bytes)
            self._inbox.put_nowait((message.topic.value, message.payload))

    async def keep(self, topic: str, payload: bytes) -> None:
        await self._client.publish(topic, payload, qos=1, retain=True)

    async def keep_spec(self, spec: TaskSpec = SPEC) -> None:
        await self.keep(TOPICS.spec, spec_to_json(spec))

    async def keep_chunks(self, chunks: list[tuple[str, bytes]]) -> None:
        for topic, payload in chunks:
            await self.keep(topic, payload)

    async def keep_manifest(self, manifest: Manifest) -> None:
        await self.keep(TOPICS.model, encode_manifest(manifest))

    async def keep_model(self, model: Model) -> None:
        await self.keep_chunks(model.chunks)
        await self.keep_manifest(model.manifest)

    async def update(self) -> ModelUpdate:
        """The next update that comes up."""
        while True:
            topic, payload = await self._inbox.get()
            if topic == TOPICS.up(DEVICE):
                return decode_update(payload)

    async def update_from(self, model: Model) -> ModelUpdate:
        """The next update that was trained from a model."""
        while True:
            update = await self.update()
            if (update.epoch, update.base_version) == (model.epoch, model.version):
                return update

    async def birth(self) -> None:
        """Wait until the device says that it is online."""
        while True:
            topic, payload = await self._inbox.get()
            if topic == TOPICS.state(DEVICE) and msgspec.json.decode(payload)["online"]:
                return

    async def state(self) -> dict[str, Any]:
        """The next state that the device says."""
        while True:
            topic, payload = await self._inbox.get()
            if topic == TOPICS.state(DEVICE):
                state: dict[str, Any] = msgspec.json.decode(payload)
                return state

    async def settle(self, update: ModelUpdate, outcome: int = FOLDED, **changes: int) -> None:
        known = {"low": update.seq, "boot": update.boot, "settled": 0} | changes
        receipt = Receipt(
            epoch=update.epoch,
            boot=Boot(known["boot"]),
            low=known["low"],
            settled=known["settled"],
            seq=update.seq,
            outcome=outcome,
            version=ModelVersion(update.base_version + 1),
        )
        await self.keep(TOPICS.receipt(DEVICE), encode_receipt(receipt))


@asynccontextmanager
async def server_side(broker: servers.Server) -> AsyncIterator[ServerSide]:
    async with aiomqtt.Client(servers.HOST, broker.port) as client:
        await client.subscribe([(TOPICS.up(DEVICE), 1), (TOPICS.state(DEVICE), 1)])
        side = ServerSide(client)
        listening = asyncio.create_task(side.listen())
        try:
            async with asyncio.timeout(20):
                yield side
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


@dataclass
class Device:
    """A running agent and its parts."""

    agent: Agent
    spool: Spool
    trainer: Tiny
    created: list[Seq]


@asynccontextmanager
async def device(
    broker: servers.Server,
    directory: Path,
    *,
    trainer: Tiny | None = None,
    boot: int = 77,
    silence_s: float = 0.5,
    resend_s: float = 0.2,
    disk_mb: int = 0,
) -> AsyncIterator[Device]:
    settings = AgentSettings(
        mqtt_port=broker.port,
        mqtt_connect_timeout_s=5,
        device=DEVICE,
        task="pumps",
        trainer="not:used",
        resend_s=resend_s,
        silence_s=silence_s,
        reconnect_s=0.2,
    )
    boots = count(boot)
    spool = Spool(directory / "spool.sqlite", new_boot=lambda: Boot(next(boots)), disk_mb=disk_mb)
    made, created = trainer or Tiny(), []
    agent = Agent(
        settings,
        made,
        spool,
        entropy=entropy_of(1),
        rng=random.Random(1),
        on_created=lambda _boot, seq, _replaced, _message: created.append(seq),
    )
    running = asyncio.create_task(agent.run())
    try:
        yield Device(agent, spool, made, created)
        assert not running.done(), "an agent never ends by itself"
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        spool.close()


async def eventually(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(15):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


async def turns(server: ServerSide, heard: "Heard") -> None:
    """Many turns between server, broker and device: more than fetching a model would take."""
    for turn in range(heard.count("ignored topic=") + 1, heard.count("ignored topic=") + 50):
        await server.keep(TOPICS.receipt(DEVICE), b"\xff not a receipt")
        await eventually(lambda n=turn: heard.count("ignored topic=") == n, "it listens")


class Heard(logging.Handler):
    """What the agent logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def count(self, text: str) -> int:
        return sum(text in line for line in self.lines)
