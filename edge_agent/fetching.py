"""Fetching the model that counts: which one, from where, and again when nothing comes.

A model that is one blob comes in its chunks; how a model that walks on a lattice is caught up with
stands in `edge_agent.walking`. Either is resumed from the chunks on the disk. Before all models
comes the task's bundle, where the trainer takes it (`edge_agent.bundles`).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from edge_agent import disk
from edge_agent.bundles import BundleFetcher
from edge_agent.download import assemble, fits, next_window
from edge_agent.offers import Channel, Offers, is_lattice
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.walking import Caught, Walker
from edge_agent.windows import Connection, Windows
from mqtt_session.backoff import Backoff
from schemas.errors import ConfigError, WireError
from schemas.messages import Manifest
from schemas.names import DeviceId
from schemas.seal import EVERYBODY, opened
from schemas.task import TaskSpec, device_spec_from_json
from schemas.topics import TaskTopics
from schemas.wire import decode_manifest, encode_manifest

log = logging.getLogger("fedmq.agent")

KEPT: Final = 2
"""Blobs that the server leaves on the broker (docs/wire.md, section 5): when so many newer models
are told of, what is still missing of an older one has gone."""


class Fetcher:
    """What fetches models for one device, over one connection after the other.

    Args:
        settings: pauses and patience.
        topics: of the task.
        device: who asks.
        spool: the device's disk.
        on_news: awaited when a model has been adopted, or the bundle is here.
        bundled: whether the trainer takes the task's bundle.
    """

    def __init__(
        self,
        settings: AgentSettings,
        topics: TaskTopics,
        device: DeviceId,
        spool: Spool,
        *,
        on_news: Callable[[], Awaitable[None]],
        bundled: bool = False,
    ) -> None:
        self._topics = topics
        self._device = device
        self._spool = spool
        self._on_news = on_news
        self._again = Backoff(settings.silence_s, settings.resend_longest_s)
        self._windows = Windows(settings, topics, device)
        self._walker = Walker(self._windows, spool)
        self._bundles = BundleFetcher(
            settings, self._windows, spool, spec=self.stored_spec, wanted=bundled
        )
        self._wanted: Manifest | None = None
        self._overtaken, self._is_on_blob = 0, False
        self._offers = Offers(canary=False)
        self._refused: Manifest | None = None
        self._rereading = False
        self._wake = asyncio.Event()
        self._refusals = 0

    # -- what is offered -------------------------------------------------------------------

    def begin(self, *, canary: bool) -> None:
        """A new connection: whatever the last one has told may be over."""
        self._offers = Offers(canary=canary)
        self._rereading = False
        self._walker.begin()

    @property
    def canary(self) -> bool:
        """Whether this device gets new versions first."""
        return self._offers.canary

    @canary.setter
    def canary(self, canary: bool) -> None:
        self._offers.canary = canary

    @property
    def channel_topic(self) -> str:
        """Where the manifest for this device stands, unless it is pinned."""
        return self._topics.candidate if self._offers.canary else self._topics.model

    @property
    def caught_up(self) -> bool:
        """Whether this connection has told which model counts, and nothing has to be fetched."""
        counts = self._offers.counts is not None and not self._rereading
        return counts and self._wanted is None and not self._bundles.lacks(self.stored_spec())

    def wake(self) -> None:
        """Look again: what did not fit before may fit now."""
        self._wake.set()

    def hear(self, channel: Channel, payload: bytes) -> None:
        """Note what a channel offers, and want what counts now. Raises WireError."""
        plain = opened(payload, EVERYBODY)
        self._offers.hear(channel, decode_manifest(plain) if plain else None)
        self._rereading = self._rereading and channel != self._offers.channel
        self._look()

    def _look(self) -> None:
        """Want what counts now, as far as this connection has told."""
        if self._offers.counts is None:
            return
        source = (self._spool.load("channel") or b"model").decode()
        wanted = self._offers.wanted(self._stored_manifest(), source)
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake.set()
            self._overtaken += 1
            if self._is_on_blob and self._overtaken >= KEPT:
                self._windows.give_up()

    def take(self, topic: str, payload: bytes) -> None:
        """A chunk or an answer has come."""
        self._windows.take(topic, payload)

    # -- fetching --------------------------------------------------------------------------

    async def run(self, session: Connection) -> None:
        """Fetch the newest wanted model, resuming from the chunks that are here, for ever."""
        if self._wanted is not None or self._bundles.lacks(self.stored_spec()):
            self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            manifest, spec = self._wanted, self.stored_spec()
            if spec is not None and self._bundles.lacks(spec):
                await self._fetch_bundle(session, spec)
                continue
            if manifest is None or spec is None or manifest == self._stored_manifest():
                continue
            if not self._fits(manifest, spec):
                continue
            if not await asyncio.to_thread(self._has_room_for, manifest, spec):
                continue
            if await self._fetch_one(session, manifest, spec):
                self._refusals = 0
                if self._wanted is manifest:
                    self._wanted = None
                self._look()  # it may have been overtaken: by a pin to what was here before, too
                await self._on_news()
            elif self._wanted is manifest:  # swept, lost by the broker, or wrong
                self._wanted, self._rereading = None, True
                pinned = self._offers.channel == "pin"
                again = self._topics.pin(self._device) if pinned else self.channel_topic
                await session.subscribe([again], qos=1)

    async def _fetch_bundle(self, session: Connection, spec: TaskSpec) -> None:
        """Fetch what every model of the task needs, or wait until it may be asked for again."""
        if await self._bundles.fetch(session, spec) or not self._bundles.lacks(spec):
            await self._on_news()
        else:
            await wait(self._wake, self._bundles.pause_s())
        self._wake.set()

    def _stored_manifest(self) -> Manifest | None:
        raw = self._spool.load("manifest")
        return None if raw is None else decode_manifest(raw)

    def store_spec(self, payload: bytes, spec: TaskSpec) -> None:
        """Keep another specification, and no bundle but the one that it names."""
        self._bundles.store_spec(payload, spec)

    def stored_spec(self) -> TaskSpec | None:
        """The specification on the disk; None: there is none that this device understands."""
        raw = self._spool.load("spec")
        try:
            return None if raw is None else device_spec_from_json(raw)
        except ConfigError:
            return None  # of a task that needs a newer device: another one may come

    def _fits(self, manifest: Manifest, spec: TaskSpec) -> bool:
        """Whether this can be a model of the task: of its tensors, and no larger than they are."""
        if not spec.params.digest.startswith(manifest.spec_digest):
            log.info("waiting version=%d: for the specification of its tensors", manifest.version)
            return False
        size, bound = manifest.blob_bytes, disk.blob_bytes_most(manifest, spec)
        if size > bound:
            log.warning("model_refused version=%d bytes=%d above=%d", manifest.version, size, bound)
        return size <= bound

    def _has_room_for(self, manifest: Manifest, spec: TaskSpec) -> bool:
        """Whether a model fits below the disk's bound; told once of each."""
        model, lattice = manifest.blob_bytes, 0
        if is_lattice(manifest):
            model, lattice = 4 * spec.params.size, 4 * spec.params.wire_size
        if self._spool.room_for_model(disk.chunks_on_pages(manifest), model, lattice):
            return True
        if manifest != self._refused:
            told = "model_refused version=%d bytes=%d: no room for it within disk_mb=%d"
            log.warning(told, manifest.version, manifest.blob_bytes, self._spool.disk_mb)
            self._refused = manifest
        return False

    async def _fetch_one(self, session: Connection, manifest: Manifest, spec: TaskSpec) -> bool:
        """Fetch one model; False when it does not come, is wrong, or another one is wanted."""
        try:
            if is_lattice(manifest):
                caught = await self._walker.catch_up(session, manifest, spec, self._wanted_now)
            else:
                self._overtaken, self._is_on_blob = 0, True
                try:
                    caught = await self._fetch_blob(session, manifest)
                finally:
                    self._is_on_blob = False
            if caught is None:
                return False
        except WireError as exc:
            log.warning("model_refused version=%d error=%s", manifest.version, exc)
            await asyncio.to_thread(self._spool.drop_chunks)
            self._refusals += 1  # it may be as wrong the next time: do not spend the link on it
            await wait(self._wake, self._again.bound_s(self._refusals))
            return False
        await asyncio.to_thread(self._adopt, manifest, spec, caught.values)
        told = "caught_up epoch=%d version=%d way=%s bytes=%d with_packets=%d"
        counted = self._windows.carried, self._windows.spent
        log.info(told, manifest.epoch, manifest.version, caught.way, *counted)
        self._windows.forget()
        return True

    def _wanted_now(self) -> Manifest | None:
        return self._wanted

    async def _fetch_blob(self, session: Connection, manifest: Manifest) -> Caught | None:
        """Fetch one blob; None when its chunks do not come, or are not wanted."""
        blob = manifest.blob
        have = await asyncio.to_thread(self._spool.chunks, blob)
        while window := next_window(manifest, have):
            if self._overtaken >= KEPT:
                return None
            pieces = [(blob, index) for index in window]
            found = await self._windows.fetch(
                session, pieces, lambda _, index, chunk: fits(manifest, index, chunk)
            )
            chunks = {index: chunk for (_, index), chunk in found.items()}
            await asyncio.to_thread(self._spool.add_chunks, blob, chunks.items())
            have |= chunks
            if len(chunks) < len(window):
                log.info("silence blob=%s: reading the manifest again", blob)
                return None
            if self._wanted is not manifest:
                return None
        return Caught("blob", {"params": assemble(manifest, have)})

    def _adopt(self, manifest: Manifest, spec: TaskSpec, values: Mapping[str, bytes]) -> None:
        """Keep a model with all that belongs to it, in one transaction.

        Without a lattice its place there takes no room any more, nor does where that began.
        """
        if not is_lattice(manifest):
            spare = {"q", "exponents"} | ({"origin"} if not spec.publish.lattice else set())
            left = [name for name in spare if self._spool.bytes_of(name)]
            values = dict.fromkeys(left, b"") | dict(values)
        packed, source = encode_manifest(manifest), self._offers.source(manifest)
        self._spool.save(manifest=packed, channel=source.encode(), **values)
        self._spool.drop_chunks()


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but not longer than this."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return
