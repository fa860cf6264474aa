"""Following a task as a device does: which models there are, and the diff from one to another.

Everything comes from retained topics: the specification, the manifest of the newest publication,
and the blobs of diffs and keyframes, which are asked for when a radio needs them. What no topic of
the task tells is which publication an older version was; it is noted under `lorawan`, retained, so
that a new adapter knows the models that an earlier one has sent.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, Protocol

import msgspec

from broker.lorawan.pieces import LENGTH_MAX
from broker.lorawan.transfers import Models, Step
from broker.lorawan.ways import joined, rungs
from mqtt_session.session import Inbound
from schemas.errors import ConfigError, WireError
from schemas.lattice import KEYFRAME, diff_bytes, sizes_of
from schemas.messages import Manifest
from schemas.seal import EVERYBODY, opened
from schemas.task import TaskSpec, device_spec_from_json
from schemas.topics import TaskTopics
from schemas.watch import Aired
from schemas.wire import decode_manifest

log = logging.getLogger("fedmq.lorawan")

PATIENCE_S: Final = 10.0
"""How long a chunk is waited for."""

WINDOW: Final = 8
"""Topics in a SUBSCRIBE (AWS IoT Core)."""

CACHED: Final = 64
"""Diffs that are kept: devices of a fleet ask for the same ones."""


class Connection(Protocol):
    """What following needs of a session."""

    async def subscribe(self, filters: Sequence[str], *, qos: int) -> None:
        """Subscribe in one packet."""

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        """Unsubscribe in one packet."""

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish."""


class Following:
    """One task, over one connection or many.

    Args:
        topics: the task's.
        models: what is learnt goes in here.
    """

    def __init__(self, topics: TaskTopics, models: Models) -> None:
        self._topics = topics
        self._models = models
        self._sizes: tuple[int, ...] = ()
        self._spec: TaskSpec | None = None
        self._manifest: Manifest | None = None
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._cache: dict[Step, tuple[Step, bytes]] = {}
        self._noted: dict[int, int] = {}

    @property
    def seals(self) -> bool:
        """Whether updates of this task must end with a checksum."""
        return self._spec is not None and self._spec.codec.checksum

    async def begin(self, session: Connection) -> None:
        """Ask for what is retained."""
        self._waiting.clear()
        topics = self._topics
        await session.subscribe([topics.lorawan], qos=1)  # before the manifest, and so it comes
        await session.subscribe([topics.spec, topics.model], qos=1)

    def hear(self, message: Inbound) -> None:
        """Take a message of the task. Whatever cannot be read is told and passed over."""
        topic, payload = message.topic, message.payload
        try:
            if topic == self._topics.spec and payload:
                self._spec = device_spec_from_json(payload)
                self._sizes = sizes_of(self._spec.params)
                self._models.last = self._spec.phase == "finished"
            elif topic == self._topics.model and payload:
                self._publish(decode_manifest(opened(payload, EVERYBODY)))
            elif topic == self._topics.lorawan and payload:
                self._read_note(msgspec.json.decode(payload, type=Aired))
            elif (future := self._waiting.get(topic)) is not None and not future.done():
                future.set_result(payload)
        except (ConfigError, WireError, msgspec.MsgspecError) as exc:
            log.warning("unreadable topic=%s error=%s", topic, exc)

    async def note(self, session: Connection) -> None:
        """Keep under `lorawan` which publications are known, when there are new ones."""
        models = self._models
        if models.serial < 0 or models.serials == self._noted:
            return
        self._noted = dict(models.serials)
        said = Aired(models.epoch, sorted(models.serials.items()))
        await session.publish(self._topics.lorawan, msgspec.json.encode(said), retain=True)

    async def way(self, session: Connection, step: Step) -> tuple[Step, bytes] | None:
        """What leads a device along a step: the shorter of a merged diff and the keyframe.

        The step comes back as the one that is taken. None: nothing is to be had now.
        """
        if (known := self._cache.get(step)) is not None:
            return known
        whole = replace(step, first=None, first_version=0)
        try:
            found = await self._diff(session, step)
            if found is None or len(found) > self._keyframe_bytes(step):
                keyframe = await self._keyframe(session, step)
                step_taken, found = (whole, keyframe) if keyframe else (step, found)
            else:
                step_taken = step
        except WireError as exc:
            log.warning("diff_refused from=%s to=%d error=%s", step.first, step.last, exc)
            return None
        if not found:
            return None
        if len(found) > LENGTH_MAX:
            log.warning("too_long bytes=%d: a radio takes at most %d", len(found), LENGTH_MAX)
            return None
        while len(self._cache) >= CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[step] = step_taken, found
        return step_taken, found

    # -- what is told ----------------------------------------------------------------------

    def _publish(self, manifest: Manifest) -> None:
        if manifest.codec != KEYFRAME:
            log.warning("no_lattice: set [publish] lattice = true, radios get nothing down")
            return
        self._manifest = manifest
        self._models.hear(manifest)

    def _read_note(self, note: Aired) -> None:
        """What an earlier adapter has known, or this one."""
        self._models.remember(note.epoch, dict(note.serials))

    # -- what is fetched -------------------------------------------------------------------

    def _keyframe_bytes(self, step: Step) -> int:
        """How long the keyframe at the end of this step is; endless when it is another's."""
        manifest = self._manifest
        if manifest is None or manifest.serial != step.last:
            return LENGTH_MAX
        return manifest.blob_bytes

    async def _keyframe(self, session: Connection, step: Step) -> bytes | None:
        manifest = self._manifest
        if manifest is None or manifest.serial != step.last:
            return None
        return await self._blob(session, manifest.blob, manifest.blob_bytes)

    async def _diff(self, session: Connection, step: Step) -> bytes | None:
        """The diffs of the ladder between the two, merged. Raises WireError."""
        blobs: list[bytes] = []
        for name in rungs(step):
            blob = await self._blob(session, name, 0)
            if blob is None:
                return None
            blobs.append(blob)
        return joined(blobs, self._sizes) if blobs and self._sizes else None

    async def _blob(self, session: Connection, name: str, size: int) -> bytes | None:
        """All of a blob; its first chunk tells its size when `size` is 0. Raises WireError."""
        first = (await self._chunks(session, name, [0])).get(0, b"")
        if not first:
            return None
        size = size or diff_bytes(first)
        if size > LENGTH_MAX:
            log.warning(
                "too_long blob=%s bytes=%d: a radio takes at most %d", name, size, LENGTH_MAX
            )
            return None
        rest = -(-(size - len(first)) // len(first))
        found = {0: first}
        for start in range(1, 1 + rest, WINDOW):
            window = range(start, min(start + WINDOW, 1 + rest))
            came = await self._chunks(session, name, window)
            if len(came) < len(window):
                return None
            found |= came
        blob = b"".join(found[i] for i in sorted(found))
        return blob if len(blob) == size else None

    async def _chunks(
        self, session: Connection, name: str, indices: Sequence[int]
    ) -> dict[int, bytes]:
        """Those of some chunks that come in time."""
        topics = {self._topics.chunk(name, index): index for index in indices}
        async with self._expect(session, list(topics)) as futures:
            await asyncio.wait(futures.values(), timeout=PATIENCE_S)
            return {topics[t]: f.result() for t, f in futures.items() if f.done() and f.result()}

    @asynccontextmanager
    async def _expect(
        self, session: Connection, topics: list[str]
    ) -> AsyncIterator[dict[str, "asyncio.Future[bytes]"]]:
        loop = asyncio.get_running_loop()
        futures = {topic: loop.create_future() for topic in topics}
        self._waiting |= futures
        try:
            await session.subscribe(topics, qos=1)
            yield futures
            await session.unsubscribe(topics)
        finally:
            for topic in topics:
                self._waiting.pop(topic, None)
