"""The agent's life on one connection: listen, fetch the newest model, send what is open.

Clean sessions: all that a device needs is retained, or is sent again. An update is published
again, with growing pauses, until its Receipt settles it; PUBACK means only that a broker has it.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from time import monotonic, time
from typing import Final, Protocol, TypeAlias

import msgspec

from edge_agent import windows
from edge_agent.allowance import Allowance, from_disk, publish_bytes, to_disk
from edge_agent.compressor import may_restore, restored
from edge_agent.fetching import Fetcher, wait
from edge_agent.offers import Channel
from edge_agent.restraint import Restraint
from edge_agent.settings import AgentSettings
from edge_agent.spool import DiskFull, OpenUpdate, Spool
from lifetimes.together import together
from mqtt_session.address import address_of
from mqtt_session.backoff import Backoff
from mqtt_session.session import Inbound, LinkError
from schemas.errors import ConfigError, WireError
from schemas.messages import Receipt
from schemas.names import Boot, DeviceId, Seq, in_canary
from schemas.outcomes import FOLDED, Reason, outcome_name
from schemas.pace import PaceHint
from schemas.seal import SEAL_BYTES, opened, sealed
from schemas.task import TaskSpec, device_spec_from_json
from schemas.topics import TaskTopics
from schemas.uplink import read_uplink
from schemas.watch import Busy, DeviceState
from schemas.window import is_settled
from schemas.wire import decode_receipt

log = logging.getLogger("fedmq.agent")

BANNED_S: Final = 3600.0
"""How long a device that is banned makes no update; then it asks with the next one."""

GOODBYE_S: Final = 0.4
"""How long a device that is stopped tries to say so."""


Identity: TypeAlias = tuple[Boot, Seq]
"""What an update of this device is called."""


class Connection(windows.Connection, Protocol):
    """What the link needs of an MQTT connection, whoever owns it."""

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
        on_news: awaited when the specification, the bundle, the model or the outbox has changed.
        bundled: whether the trainer takes the task's bundle.
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
        bundled: bool = False,
    ) -> None:
        self.online = False
        self._settings = settings
        self._topics = topics
        self._device = device
        self._spool = spool
        self._rng = rng
        self._on_news = on_news
        self._resend = Backoff(settings.resend_s, settings.resend_longest_s)
        self._fetcher = Fetcher(settings, topics, device, spool, on_news=on_news, bundled=bundled)
        self._spec: TaskSpec | None = None
        self._allowance = from_disk(spool.load("allowance"), time(), monotonic())
        self._held_until: float | None = None
        self._restraint = Restraint(rng)
        self._wake_sender = asyncio.Event()
        self._banned_at: float | None = None
        self.hint: PaceHint | None = None

    @property
    def left_share(self) -> float | None:
        """The share of a day's bytes that is left; None: nothing is bounded, or known."""
        left = self._left
        if not self._daily or left.level is None:
            return None
        return min(1.0, max(0.0, (left.until(self._daily, monotonic()).level or 0.0) / self._daily))

    @property
    def barred_s(self) -> float:
        """How long to make no further update, because the server takes none from this device."""
        if self._banned_at is None:
            return 0.0
        return max(0.0, self._banned_at + BANNED_S - monotonic())

    @property
    def held_s(self) -> float:
        """How long until what is due may go up, of the bytes a day that the task allows."""
        return 0.0 if self._held_until is None else max(0.0, self._held_until - monotonic())

    def next_s(self, spec: TaskSpec, waiting: Iterable[int]) -> float:
        """How long until one more update may go up, behind messages of so many bytes."""
        topic, budget = self._topics.up(self._device), read_uplink(spec.uplink)
        seal = SEAL_BYTES if spec.codec.checksum else 0
        most = budget.message_bytes
        one_more = publish_bytes(topic, most) if most else self._allowance.packet
        size = one_more + sum(publish_bytes(topic, each + seal) for each in waiting)
        return self._left.wait_s(size, budget.day_bytes, monotonic())

    @property
    def _left(self) -> Allowance:
        """What may go up, by whichever of timer and clock has gone further."""
        return self._allowance.by_clock(time(), monotonic())

    @property
    def caught_up(self) -> bool:
        """Whether this connection has told which model counts, and nothing has to be fetched."""
        return self.online and self._fetcher.caught_up

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
            self.online, self._held_until = False, None
            self._note_allowance()

    def _note_allowance(self) -> None:
        """Write down what has flown in: after a restart no clock tells it that was never set."""
        if self._daily and self._allowance.level is not None:
            now_s, clock_s = monotonic(), time()
            left = replace(self._left.until(self._daily, now_s), clock_s=clock_s)
            with suppress(DiskFull):
                self._spool.save(allowance=to_disk(left, clock_s))
            self._allowance = left

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
        spec = self._spec = self._fetcher.stored_spec()
        canary = spec is not None and in_canary(self._device, spec.gate.canary)
        self._fetcher.begin(canary=canary)
        self._restraint = Restraint(self._rng)
        own = [topics.busy, topics.pin(self._device), topics.receipt(self._device), topics.spec]
        own.append(topics.pace)
        await session.subscribe([*own, self._fetcher.channel_topic], qos=1)
        await self._say_state(session, online=True)
        self.online = True
        await self._on_news()
        log.info("connected mqtt=%s", address_of(self._settings))
        if spec is None:
            log.info("waiting task=%s: nothing is published yet", self._settings.task)
        await together(self._fetcher.run(session), self._send(session))

    # -- listening -------------------------------------------------------------------------

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
            self._fetcher.hear(channels[message.topic], payload)
        elif message.topic == topics.receipt(self._device):
            await self._settle(payload)
        elif message.topic == topics.busy:
            self._hear_busy(payload)
        elif message.topic == topics.pace:
            await self._hear_pace(payload)
        elif not payload:
            return  # a retained topic was cleared
        elif message.topic == topics.spec:
            await self._obey(session, payload)
        else:
            self._fetcher.take(message.topic, payload)

    async def _obey(self, session: Connection, payload: bytes) -> None:
        """Follow another specification; it also tells whether this device is a canary."""
        spec = device_spec_from_json(payload)
        await asyncio.to_thread(self._fetcher.store_spec, payload, spec)
        self._spec = spec
        canary = in_canary(self._device, spec.gate.canary)
        if canary != self._fetcher.canary:
            await session.unsubscribe([self._fetcher.channel_topic])
            self._fetcher.canary = canary
            await session.subscribe([self._fetcher.channel_topic], qos=1)
        self._fetcher.wake()
        self._wake_sender.set()  # more may go up now
        await self._on_news()

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

    async def _hear_pace(self, payload: bytes) -> None:
        """Which share of the fleet is to train; it holds until another word, offline too."""
        try:
            self.hint = msgspec.json.decode(payload, type=PaceHint) if payload else None
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise WireError(Reason.MALFORMED, str(exc)) from exc
        await self._on_news()

    async def _settle(self, payload: bytes) -> None:
        if not payload:  # cleared: whatever was held against this device is over
            await self._bar(banned=False)
            return
        receipt = decode_receipt(opened(payload, self._device))
        if receipt.outcome != FOLDED:
            reason = outcome_name(receipt.outcome)
            log.warning("update_rejected seq=%d reason=%s", receipt.seq, reason)
        await self._bar(banned=receipt.outcome == Reason.BANNED)
        if await asyncio.to_thread(self._settled, receipt):
            self._fetcher.wake()  # a model may fit now that did not
            await self._on_news()

    def _settled(self, receipt: Receipt) -> list[Seq]:
        """What a Receipt settles of this device's updates; what it refuses is made good."""
        spec = self._spec
        restores = spec is not None and may_restore(spec.train, receipt.outcome)

        def restore(message: bytes, residual: bytes | None) -> bytes | None:
            assert spec is not None  # noqa: S101 - see above
            return restored(message, residual, spec.params.wire_size)

        return self._spool.settle(
            receipt.boot,
            lambda seq: is_settled(seq, receipt.low, receipt.settled),
            refused=None if receipt.outcome == FOLDED else Seq(receipt.seq),
            restore=restore if restores else None,
        )

    async def _bar(self, *, banned: bool) -> None:
        """Note what the newest receipt says of this device."""
        if banned or self._banned_at is not None:
            self._banned_at = monotonic() if banned else None
            await self._on_news()

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
            held_s = 0.0
            for update in sorted(updates, key=lambda u: due[u.boot, u.seq]):
                name = update.boot, update.seq
                if due[name] > now or self._restraint.left_s(monotonic()):
                    break
                message = self._said(update)
                if held_s := self._left.wait_s(self._packet(message), self._daily, monotonic()):
                    break
                if await self._mark_sent(name, message):
                    await session.publish(self._topics.up(self._device), message)
                    self._restraint.sent(monotonic())
                    tries[name] = tries.get(name, 0) + 1
                    due[name] = monotonic() + self._pause(tries[name])
            await self._hold(held_s)
            now = monotonic()
            nearest = min((due[u.boot, u.seq] for u in updates), default=now + 3600.0)
            longest = max(nearest - now, self._restraint.left_s(now), held_s)
            await wait(self._wake_sender, longest)

    @property
    def _daily(self) -> float:
        """Bytes that may go up in a day; 0: no bound."""
        return 0.0 if self._spec is None else read_uplink(self._spec.uplink).day_bytes

    def _packet(self, message: bytes) -> int:
        return publish_bytes(self._topics.up(self._device), len(message))

    async def _mark_sent(self, name: Identity, message: bytes) -> bool:
        """Note that a message goes up, and what may go up after it; False: it was replaced."""
        clock_s = time()
        left = self._left.without(self._packet(message), self._daily, monotonic())
        record = to_disk(left, clock_s) if self._daily else None
        if not await asyncio.to_thread(self._spool.mark_sent, *name, allowance=record):
            return False
        self._allowance = replace(left, clock_s=clock_s) if self._daily else left
        return True

    async def _hold(self, held_s: float) -> None:
        """Note for how long what is due must wait, or that nothing must any more."""
        before, self._held_until = self._held_until, monotonic() + held_s if held_s else None
        if (before is None) != (self._held_until is None):
            await self._on_news()

    def _said(self, update: OpenUpdate) -> bytes:
        """An update as it goes out: sealed, when the task asks for it now."""
        seals = self._spec is not None and self._spec.codec.checksum
        return sealed(update.message, self._device) if seals else update.message

    def _first_due(self, update: OpenUpdate, now: float) -> float:
        """At once; one that was sent before leaves its Receipt a moment to arrive."""
        return now + self._rng.uniform(0.2, 1.0) if update.sent else now

    def _pause(self, tries: int) -> float:
        return self._resend.bound_s(tries) * self._rng.uniform(0.8, 1.2)
