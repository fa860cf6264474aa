"""A task with a tiny bundle on a real broker: the test plays the server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

import aiomqtt
import msgspec
import numpy as np
import onnx_bundles
import servers

from schemas.bundle import read_bundle, ref_of
from schemas.messages import Manifest, ModelUpdate
from schemas.names import DeviceId, Epoch, ModelVersion, TaskName
from schemas.params import model_digest
from schemas.task import TaskSpec, checked_spec, spec_to_json
from schemas.topics import TaskTopics
from schemas.wire import decode_update, encode_manifest

DEVICE: Final = DeviceId("pump-7")
TOPICS: Final = TaskTopics("fedmq/v1", TaskName("pumps"))
SENSORS: Final = "plant/pump-7/sensors"
CHUNK: Final = 512


@dataclass
class House:
    """What the server retains, and what it hears."""

    client: aiomqtt.Client
    packed: bytes
    heard: list[tuple[str, bytes]] = field(default_factory=list)

    async def publish_task(self, **changes: Any) -> None:
        ref = ref_of(self.packed, CHUNK)
        params = read_bundle(self.packed).manifest.params
        spec = checked_spec(TaskSpec(params, bundle=ref, **changes))
        for place, piece in enumerate(_pieces(self.packed)):
            await self._keep(TOPICS.chunk(ref.blob, place), piece)
        await self._keep(TOPICS.spec, spec_to_json(spec))

    async def publish_model(self, version: int, params: np.ndarray) -> None:
        spec, raw = read_bundle(self.packed).manifest.params, params.astype("<f4").tobytes()
        manifest = Manifest(
            epoch=Epoch(1),
            version=ModelVersion(version),
            model_digest=model_digest(spec.digest, params),
            spec_digest=spec.digest,
            codec=0,
            blob=f"k1-{version}",
            blob_digest=sha256(raw).digest(),
            blob_bytes=len(raw),
            chunk_bytes=CHUNK,
        )
        for place, piece in enumerate(_pieces(raw)):
            await self._keep(TOPICS.chunk(manifest.blob, place), piece)
        await self._keep(TOPICS.model, encode_manifest(manifest))

    async def send(self, *readings: Any) -> None:
        for reading in readings:
            await self.client.publish(SENSORS, msgspec.json.encode(reading), qos=1)

    async def update(self, version: int) -> ModelUpdate:
        """The next update that was trained from a version."""
        while True:
            for topic, payload in self.heard:
                if topic == TOPICS.up(DEVICE):
                    update = decode_update(payload)
                    if update.base_version == version:
                        return update
            await asyncio.sleep(0.01)

    def told(self, topic: str) -> list[dict[str, Any]]:
        return [msgspec.json.decode(payload) for t, payload in self.heard if t == topic]

    async def _keep(self, topic: str, payload: bytes) -> None:
        await self.client.publish(topic, payload, qos=1, retain=True)

    async def listen(self) -> None:
        async for message in self.client.messages:
            self.heard.append((str(message.topic), bytes(message.payload)))  # type: ignore[arg-type]


def _pieces(data: bytes) -> list[bytes]:
    return [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]


@asynccontextmanager
async def house(
    broker: servers.Server, packed: bytes | None = None, *, patience_s: float = 40
) -> AsyncIterator[House]:
    async with aiomqtt.Client(servers.HOST, broker.port) as client:
        await client.subscribe([("#", 1)])
        there = House(client, packed or onnx_bundles.softmax_packed())
        listening = asyncio.create_task(there.listen())
        try:
            async with asyncio.timeout(patience_s):
                yield there
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)
