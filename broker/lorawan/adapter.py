"""The LoRaWAN adapter: a network server's events become updates, models go back in its windows.

    event -> up/{shard}/{DevEUI} at fedmq's broker -> its PUBACK -> PUBACK of the event

Whatever goes wrong ends both connections: events that were not acknowledged come again, and a
frame that was published twice is a duplicate that the fold knows. The Things Stack speaks QoS 0
only: what it says while nobody listens is lost, and no promise covers it. The adapter keeps
nothing of its own; transfers that were under way begin anew.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeAlias

from broker.lorawan.commands import downlink
from broker.lorawan.events import Joined, Refused, Sent, Uplink, read_event
from broker.lorawan.following import Following
from broker.lorawan.regions import Region, region
from broker.lorawan.settings import LorawanSettings, network_settings
from broker.lorawan.transfers import Models, Piece, Policy, Step, Transfers
from lifetimes.together import together
from mqtt_session.address import address_of
from mqtt_session.backoff import Backoff
from mqtt_session.session import Inbound, Session, keep_connected
from mqtt_session.session import connect as connect_mqtt
from schemas.errors import ConfigError
from schemas.names import DeviceId, task_name
from schemas.seal import sealed
from schemas.short import carried
from schemas.topics import TaskTopics, checked_prefix

log = logging.getLogger("fedmq.lorawan")

FAIR_DOWNLINKS: Final = 8
"""What is used of The Things Network's 10 downlinks a day: MAC answers count too."""

TOLD_EVERY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Sessions:
    """Both connections: fedmq's broker here, the network server's there."""

    here: Session
    there: Session


Job: TypeAlias = Coroutine[Any, Any, None]
"""Something to publish."""

Wanted: TypeAlias = tuple[Uplink, Step, int]
"""An uplink that a transfer shall begin with, where it leads, and the room of a downlink."""


class Adapter:
    """One adapter process: what outlives its connections.

    Raises ConfigError for settings that cannot work.
    """

    def __init__(self, settings: LorawanSettings) -> None:
        self._settings = settings
        self._topics = TaskTopics(checked_prefix(settings.prefix), task_name(settings.task))
        self._region: Region = region(settings.region)
        self._filters = _filters(settings)
        self._network = network_settings(settings)
        _check_addresses(settings)
        self._lossy = settings.server == "thethings"
        day = settings.downlinks_day
        if day < 0:
            day = FAIR_DOWNLINKS if self._lossy else 0
        self._models = Models()
        self._transfers = Transfers(Policy(behind=settings.behind, day=day))
        self._following = Following(self._topics, self._models)
        self._wanted: dict[DeviceId, Wanted] = {}
        self._wants = asyncio.Event()
        self._counts: Counter[str] = Counter()
        self._told = monotonic()

    @asynccontextmanager
    async def door(self) -> AsyncIterator[Sessions]:
        """Both connections. Events are taken only while fedmq's broker is there."""
        name = self._settings.client_id
        here = connect_mqtt(self._settings, client_id=f"{name}-up", clean=True)
        there = connect_mqtt(
            self._network, client_id=name, clean=self._lossy, manual_ack=not self._lossy
        )
        async with here as near, there as far:
            yield Sessions(near, far)

    async def use(self, sessions: Sessions) -> None:
        """Carry frames and models until a connection ends."""
        if self._lossy:
            log.warning("weaker_promise server=thethings: QoS 0, what is missed is lost")
        self._wanted.clear()
        await together(
            self._follow(sessions.here),
            self._begin(sessions),
            self._make_diffs(sessions),
        )

    # -- fedmq's side ----------------------------------------------------------------------

    async def _follow(self, here: Session) -> None:
        while True:
            for message in await here.receive():
                self._following.hear(message)

    async def _make_diffs(self, sessions: Sessions) -> None:
        """Fetch and merge what transfers wait for, one after the other."""
        while True:
            while not self._wanted:
                self._wants.clear()
                await self._wants.wait()
            device = next(iter(self._wanted))
            uplink, step, room = self._wanted.pop(device)
            await self._following.note(sessions.here)
            found = await self._following.way(sessions.here, step)
            if found is not None:
                step, diff = found
                piece = self._transfers.begin(uplink, step, diff, room, monotonic())
                if piece is not None:
                    told = "transfer device=%s to=%d bytes=%d %s"
                    kind = "keyframe" if step.first is None else "diff"
                    log.info(told, device, step.last_version, len(diff), kind)
                    await self._hand_over(sessions.there, uplink, piece)

    # -- the network server's side ---------------------------------------------------------

    async def _begin(self, sessions: Sessions) -> None:
        await self._following.begin(sessions.here)
        await sessions.there.subscribe(self._filters, qos=0 if self._lossy else 1)
        log.info(
            "connected mqtt=%s network=%s", address_of(self._settings), address_of(self._network)
        )
        while True:
            batch = await sessions.there.receive()
            await asyncio.gather(*[job for m in batch for job in self._read(sessions, m)])
            sessions.there.acknowledge(batch)
            self._tell()

    def _read(self, sessions: Sessions, message: Inbound) -> list[Job]:
        """Take note of an event, in its order; what is to be published because of it."""
        match read_event(message.topic, message.payload):
            case Uplink() as uplink:
                self._note_qos(message)
                return [*self._lift(sessions.here, uplink), *self._answer(sessions, uplink)]
            case Joined(device):
                self._counts["joined"] += 1
                self._transfers.joined(device)
            case Sent(device):
                self._transfers.sent(device)
            case Refused(why, detail) if why != "other_event":
                self._counts[why] += 1
                level = logging.WARNING if self._counts[why] == 1 else logging.INFO
                log.log(level, "refused reason=%s %s", why, detail)
            case _:
                pass
        return []

    def _lift(self, here: Session, uplink: Uplink) -> list[Job]:
        """A frame goes to fedmq's broker as an update; a poll holds none."""
        if uplink.polls:
            self._counts["polls"] += 1
            return []
        self._counts["frames"] += 1
        data = carried(uplink.boot, uplink.seq, uplink.frame)
        if self._following.seals:
            data = sealed(data, uplink.device)
        return [here.publish(self._topics.up(uplink.device), data)]

    def _answer(self, sessions: Sessions, uplink: Uplink) -> list[Job]:
        """The next piece goes to the network server at once: the window opens in a second."""
        room = self._room(uplink)
        answer = self._transfers.hear(uplink, self._models, room, monotonic())
        match answer:
            case Piece():
                return [self._hand_over(sessions.there, uplink, answer)]
            case Step():
                self._wanted[uplink.device] = (uplink, answer, room)
                self._wants.set()
        return []

    async def _hand_over(self, there: Session, uplink: Uplink, piece: Piece) -> None:
        body = downlink(uplink.answer, uplink.device, piece.port, piece.data)
        await there.publish(uplink.answer, body, qos=0 if self._lossy else 1)
        self._counts["pieces"] += 1

    def _room(self, uplink: Uplink) -> int:
        """Bytes of one downlink to this device, as its last uplink was sent."""
        if self._settings.downlink_bytes:
            return self._settings.downlink_bytes
        for rate in self._region.up:
            if rate.dr == uplink.dr or (rate.sf, rate.bandwidth_hz) == (
                uplink.sf,
                uplink.bandwidth_hz,
            ):
                return self._region.room_down(rate)
        return self._region.rx2.frame_bytes

    # -- what people read ------------------------------------------------------------------

    def _note_qos(self, message: Inbound) -> None:
        if message.qos or self._lossy or self._counts["qos0"]:
            return
        self._counts["qos0"] += 1
        log.warning("weaker_promise events come with QoS 0: set qos=1 in [integration.mqtt]")

    def _tell(self) -> None:
        if monotonic() - self._told > TOLD_EVERY_S:
            self._told = monotonic()
            counts = " ".join(f"{name}={count}" for name, count in sorted(self._counts.items()))
            log.info("lorawan %s transfers=%d", counts, self._transfers.under_way)


def _filters(settings: LorawanSettings) -> list[str]:
    """What is heard of a network server. Raises ConfigError."""
    app = settings.application
    if not app or set("/+#") & set(app):
        remedy = "must name ChirpStack's application id, or {application}@{tenant}"
        raise ConfigError("application", remedy)
    if settings.server == "chirpstack":
        return [f"application/{app}/device/+/event/{kind}" for kind in ("up", "join", "txack")]
    return [f"v3/{app}/devices/+/{kind}" for kind in ("up", "join", "down/sent")]


def _check_addresses(settings: LorawanSettings) -> None:
    """Refuse what cannot be connected to, by the setting's own name. Raises ConfigError."""
    address_of(settings)
    try:
        address_of(network_settings(settings))
    except ConfigError as exc:
        told = exc.field.replace("mqtt_", "network_"), exc.remedy.replace("mqtt_", "network_")
        raise ConfigError(*told) from exc


async def serve(settings: LorawanSettings, *, rng: random.Random) -> None:
    """Run the adapter until cancelled. Raises ConfigError."""
    adapter = Adapter(settings)
    await keep_connected(adapter.door, adapter.use, rng=rng, backoff=Backoff(0.2, 5.0))
