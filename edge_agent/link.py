"""The agent's life on one connection: listen, fetch the newest model, send what is open.

Clean sessions: all that a device needs is retained, or is sent again. An update is published
again, with growing pauses, until its Receipt settles it; PUBACK means only that a broker has it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Final, Protocol, TypeAlias

import msgspec

from edge_agent import disk
from edge_agent.download import assemble, fits, next_window
from edge_agent.offers import Channel, Offers
from edge_agent.restraint import Restraint
from edge_agent.settings import AgentSettings
from edge_agent.spool import DiskFull, OpenUpdate, Spool
from lifetimes.together import together
from mqtt_session.address import address_of
from mqtt_session.backoff import Backoff
from mqtt_session.session import Inbound, LinkError
from schemas.errors import ConfigError, WireError
from schemas.messages import Manifest
from schemas.names import Boot, DeviceId, Seq, in_canary
from schemas.outcomes import FOLDED, Reason, outcome_name
from schemas.seal import EVERYBODY, opened, sealed
from schemas.task import TaskSpec, device_spec_from_json
from schemas.topics import TaskTopics
from schemas.watch import Busy, DeviceState
from schemas.window import is_settled
from schemas.wire import decode_manifest, decode_receipt, encode_manifest

log = logging.getLogger("fedmq.agent")

BANNED_S: Final = 3600.0
"""How long a device that is banned makes no update; then it asks with the next one."""

GOODBYE_S: Final = 0.4
"""How long a device that is stopped tries to say so."""


Identity: TypeAlias = tuple[Boot, Seq]
"""What an update of this device is called."""


class Connection(Protocol):
    """What the link needs of an MQTT connection, whoever owns it."""

    async def subscribe(self, filters: Iterable[str], *, qos: int) -> None:
        """Subscribe to at most 8 topics."""

    async def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe."""

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish, and wait for the PUBACK. Raises LinkError."""

    async def receive(self) -> list[Inbound]:
        """Wait for messages. Raises LinkError when the connection ends."""


class Link:
    """What the device does while it is connected.

    Args:
        settings: pauses and patience.
        topics: of the task.
        device: whose receipts to listen to.
        spool: the device's disk.
        rng: for jitter.
        on_news: awaited when the specification, the model or the outbox has changed.
    """

    def __init__(
        self,
        settings: AgentSettings,
        topics: TaskTopics,
        device: DeviceId,
        spool: Spool,
        *,
        rng: random.Random,
        on_news: Callable[[], Awaitable[None]],
    ) -> None:
        self.online = False
        self._settings = settings
        self._topics = topics
        self._device = device
        self._spool = spool
        self._rng = rng
        self._on_news = on_news
        self._resend = Backoff(settings.resend_s, settings.resend_longest_s)
        self._again = Backoff(settings.silence_s, settings.resend_longest_s)
        self._wanted: Manifest | None = None
        self._offers = Offers(canary=False)
        self._seals = False
        self._restraint = Restraint(rng)
        self._refused: Manifest | None = None
        self._wake_sender = asyncio.Event()
        self._wake_fetcher = asyncio.Event()
        self._chunks: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._refusals = 0
        self._banned_at: float | None = None

    @property
    def barred_s(self) -> float:
        """How long to make no further update, because the server takes none from this device."""
        if self._banned_at is None:
            return 0.0
        return max(0.0, self._banned_at + BANNED_S - monotonic())

    def wake(self) -> None:
        """There is something to send."""
        self._wake_sender.set()

    async def use(self, session: Connection) -> None:
        """Live on one connection until it ends; a disk that takes nothing ends it too."""
        try:
            await together(self._listen(session), self._act(session))
        except asyncio.CancelledError:
            await self._say_goodbye(session)
            raise
        except DiskFull as exc:
            msg = f"disk_full: {exc}"
            raise LinkError(msg) from exc
        finally:
            self.online = False

    async def _say_goodbye(self, session: Connection) -> None:
        """Say what the will would: after a clean DISCONNECT the broker keeps the will to itself."""
        with suppress(LinkError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._say_state(session, online=False)

    async def _say_state(self, session: Connection, *, online: bool) -> None:
        state = msgspec.json.encode(DeviceState(online, self._spool.boot))
        await session.publish(self._topics.state(self._device), state, retain=True)

    async def _act(self, session: Connection) -> None:
        """Say hello, then fetch and send; the listener beside it notices when the link ends."""
        topics = self._topics
        spec = self._stored_spec()
        canary = spec is not None and in_canary(self._device, spec.gate.canary)
        self._offers = Offers(canary=canary)
        self._seals = spec is not None and spec.codec.checksum
        self._restraint = Restraint(self._rng)
        own = [topics.busy, topics.pin(self._device), topics.receipt(self._device), topics.spec]
        await session.subscribe([*own, self._channel_topic], qos=1)
        await self._say_state(session, online=True)
        self.online = True
        await self._on_news()
        log.info("connected mqtt=%s", address_of(self._settings))
        if spec is None:
            log.info("waiting task=%s: nothing is published yet", self._settings.task)
        await together(self._fetch(session), self._send(session))

    # -- listening -------------------------------------------------------------------------

    @property
    def _channel_topic(self) -> str:
        return self._topics.candidate if self._offers.canary else self._topics.model

    async def _listen(self, session: Connection) -> None:
        while True:
            for message in await session.receive():
                try:
                    await self._hear(session, message)
                except (WireError, ConfigError) as exc:
                    log.warning("ignored topic=%s error=%s", message.topic, exc)

    async def _hear(self, session: Connection, message: Inbound) -> None:
        topics, payload = self._topics, message.payload
        channels: dict[str, Channel] = {
            topics.pin(self._device): "pin",
            topics.candidate: "candidate",
            topics.model: "model",
        }
        if message.topic in channels:
            self._hear_manifest(channels[message.topic], payload)
        elif message.topic == topics.receipt(self._device):
            await self._settle(payload)
        elif message.topic == topics.busy:
            self._hear_busy(payload)
        elif not payload:
            return  # a retained topic was cleared
        elif message.topic == topics.spec:
            await self._obey(session, payload)
        else:
            self._chunks.put_nowait((message.topic, payload))

    async def _obey(self, session: Connection, payload: bytes) -> None:
        """Follow another specification; it also tells whether this device is a canary."""
        spec = device_spec_from_json(payload)
        await asyncio.to_thread(self._spool.save, spec=payload)
        self._seals = spec.codec.checksum
        canary = in_canary(self._device, spec.gate.canary)
        if canary != self._offers.canary:
            await session.unsubscribe([self._channel_topic])
            self._offers.canary = canary
            await session.subscribe([self._channel_topic], qos=1)
        self._wake_fetcher.set()
        await self._on_news()

    def _stored_spec(self) -> TaskSpec | None:
        raw = self._spool.load("spec")
        try:
            return None if raw is None else device_spec_from_json(raw)
        except ConfigError:
            return None  # of a task that needs a newer device: another one may come

    def _hear_busy(self, payload: bytes) -> None:
        """Send less, or as usual again."""
        try:
            busy = msgspec.json.decode(payload, type=Busy) if payload else None
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise WireError(Reason.MALFORMED, str(exc)) from exc
        if busy is not None:
            log.info("server_busy why=%s pause_s=%.1f", busy.why, busy.pause_s)
        self._restraint.hear(busy, monotonic())
        self._wake_sender.set()

    async def _settle(self, payload: bytes) -> None:
        if not payload:  # cleared: whatever was held against this device is over
            await self._bar(banned=False)
            return
        receipt = decode_receipt(opened(payload, self._device))
        if receipt.outcome != FOLDED:
            reason = outcome_name(receipt.outcome)
            log.warning("update_rejected seq=%d reason=%s", receipt.seq, reason)
        await self._bar(banned=receipt.outcome == Reason.BANNED)

        def settled(seq: Seq) -> bool:
            return is_settled(seq, receipt.low, receipt.settled)

        if await asyncio.to_thread(self._spool.settle, receipt.boot, settled):
            self._wake_fetcher.set()  # a model may fit now that did not
            await self._on_news()

    async def _bar(self, *, banned: bool) -> None:
        """Note what the newest receipt says of this device."""
        if banned or self._banned_at is not None:
            self._banned_at = monotonic() if banned else None
            await self._on_news()

    # -- fetching --------------------------------------------------------------------------

    def _hear_manifest(self, channel: Channel, payload: bytes) -> None:
        """Note what a channel offers, and want what counts now."""
        plain = opened(payload, EVERYBODY)
        self._offers.hear(channel, decode_manifest(plain) if plain else None)
        if self._offers.counts is None:
            return
        source = (self._spool.load("channel") or b"model").decode()
        wanted = self._offers.wanted(self._stored_manifest(), source)
        if wanted != self._wanted:
            self._wanted = wanted
            self._wake_fetcher.set()

    @property
    def caught_up(self) -> bool:
        """Whether this connection has told which model counts, and none has to be fetched."""
        return self.online and self._offers.counts is not None and self._wanted is None

    def _stored_manifest(self) -> Manifest | None:
        raw = self._spool.load("manifest")
        return None if raw is None else decode_manifest(raw)

    async def _fetch(self, session: Connection) -> None:
        """Fetch the newest wanted model in windows, resuming from the chunks that are here."""
        if self._wanted is not None:
            self._wake_fetcher.set()
        while True:
            await self._wake_fetcher.wait()
            self._wake_fetcher.clear()
            manifest = self._wanted
            if manifest is None or manifest == self._stored_manifest() or not self._fits(manifest):
                continue
            if not await asyncio.to_thread(self._has_room_for, manifest):
                continue
            if await self._fetch_blob(session, manifest):
                self._refusals = 0
                if self._wanted is manifest:
                    self._wanted = None
                await self._on_news()
            elif self._wanted is manifest:  # swept, lost by the broker, or wrong
                self._wanted = None
                pinned = self._offers.channel == "pin"
                again = self._topics.pin(self._device) if pinned else self._channel_topic
                await session.subscribe([again], qos=1)

    def _fits(self, manifest: Manifest) -> bool:
        """Whether a blob of this size can be a model of the task; not before its spec is here."""
        spec = self._stored_spec()
        if spec is None:
            return False
        bound = 4 * spec.params.size
        if manifest.blob_bytes > bound:
            size = manifest.blob_bytes
            log.warning("model_refused version=%d bytes=%d above=%d", manifest.version, size, bound)
        return manifest.blob_bytes <= bound

    def _has_room_for(self, manifest: Manifest) -> bool:
        """Whether a model fits below the disk's bound; told once of each."""
        size = manifest.blob_bytes
        if self._spool.room_for_model(disk.chunks_on_pages(manifest), size):
            return True
        if manifest != self._refused:
            told = "model_refused version=%d bytes=%d: no room for it within disk_mb=%d"
            log.warning(told, manifest.version, size, self._spool.disk_mb)
            self._refused = manifest
        return False

    async def _fetch_blob(self, session: Connection, manifest: Manifest) -> bool:
        """Fetch one blob; False when its chunks do not come or another model is wanted."""
        have = await asyncio.to_thread(self._spool.chunks, manifest.blob)
        while window := next_window(manifest, have):
            chunks = await self._fetch_window(session, manifest, window)
            await asyncio.to_thread(self._spool.add_chunks, manifest.blob, chunks.items())
            have |= chunks
            if len(chunks) < len(window):
                return False
            if self._wanted is not manifest:
                self._wake_fetcher.set()
                return False
        try:
            blob = assemble(manifest, have)
        except WireError as exc:
            log.warning("model_refused version=%d error=%s", manifest.version, exc)
            await asyncio.to_thread(self._spool.drop_chunks)
            self._refusals += 1  # it may be as wrong the next time: do not spend the link on it
            await _wait(self._wake_fetcher, self._again.bound_s(self._refusals))
            return False
        await asyncio.to_thread(self._adopt, manifest, blob)
        return True

    def _adopt(self, manifest: Manifest, blob: bytes) -> None:
        packed, source = encode_manifest(manifest), self._offers.source(manifest)
        self._spool.save(manifest=packed, params=blob, channel=source.encode())
        self._spool.drop_chunks()

    async def _fetch_window(
        self, session: Connection, manifest: Manifest, window: list[int]
    ) -> dict[int, bytes]:
        """Ask for some chunks by their exact topics and wait until they come, or silence."""
        places = {self._topics.chunk(manifest.blob, index): index for index in window}
        found: dict[int, bytes] = {}
        await session.subscribe(list(places), qos=1)
        try:
            async with asyncio.timeout(self._settings.silence_s) as patience:
                while len(found) < len(window):
                    topic, data = await self._chunks.get()
                    index = places.get(topic, -1)
                    if fits(manifest, index, data):
                        found[index] = data
                        now = asyncio.get_running_loop().time()
                        patience.reschedule(now + self._settings.silence_s)
        except TimeoutError:
            log.info("silence blob=%s: reading the manifest again", manifest.blob)
        await session.unsubscribe(list(places))
        return found

    # -- sending ---------------------------------------------------------------------------

    async def _send(self, session: Connection) -> None:
        """Send what is open, one at a time: new ones at once, sent ones again when due."""
        due: dict[Identity, float] = {}
        tries: dict[Identity, int] = {}
        while True:
            self._wake_sender.clear()
            updates = await asyncio.to_thread(self._spool.open_updates)
            now = monotonic()
            for update in updates:
                due.setdefault((update.boot, update.seq), self._first_due(update, now))
            for update in sorted(updates, key=lambda u: due[u.boot, u.seq]):
                name = update.boot, update.seq
                if due[name] > now or self._restraint.left_s(monotonic()):
                    break
                if await asyncio.to_thread(self._spool.mark_sent, *name):
                    await session.publish(self._topics.up(self._device), self._said(update))
                    self._restraint.sent(monotonic())
                    tries[name] = tries.get(name, 0) + 1
                    due[name] = monotonic() + self._pause(tries[name])
            now = monotonic()
            nearest = min((due[u.boot, u.seq] for u in updates), default=now + 3600.0)
            await _wait(self._wake_sender, max(nearest - now, self._restraint.left_s(now)))

    def _said(self, update: OpenUpdate) -> bytes:
        """An update as it goes out: sealed, when the task asks for it now."""
        return sealed(update.message, self._device) if self._seals else update.message

    def _first_due(self, update: OpenUpdate, now: float) -> float:
        """At once; one that was sent before leaves its Receipt a moment to arrive."""
        return now + self._rng.uniform(0.2, 1.0) if update.sent else now

    def _pause(self, tries: int) -> float:
        return self._resend.bound_s(tries) * self._rng.uniform(0.8, 1.2)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, but not longer than this."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await event.wait()
    except TimeoutError:
        return
