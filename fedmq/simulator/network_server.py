"""A LoRaWAN network server of class A devices, in ChirpStack v4's JSON. Pure: time comes in.

    hear      a gateway has heard an uplink: the event that is published of it
    take      a command/down: it waits in the device's queue
    answer    the windows open: what goes down in RX1 or RX2, if the gateway's duty cycle lets it

A downlink that meets no free band is dropped, as a gateway does that answers with an error; whoever
sent it hears nothing of it. Refuses, as ChirpStack does, what does not fit the window's data rate.
"""

import base64
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from broker.lorawan.regions import Rate, Region
from fedmq.simulator.lora import MAC_BYTES, airtime_s

RX1_S: Final = 1.0
"""From the end of an uplink to the first window (TS001, section 3.3)."""

RX2_S: Final = 2.0
"""And to the second."""

_MONTHS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


class Event(NamedTuple):
    """What is published over MQTT."""

    topic: str
    payload: bytes


class Queued(NamedTuple):
    """What waits for a device's window."""

    port: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Downlink:
    """What a gateway sends.

    Attributes:
        port: FPort.
        data: the payload.
        rate: the data rate of its window.
        air_s: how long it is on the air.
        window: 1 or 2.
    """

    port: int
    data: bytes
    rate: Rate
    air_s: float
    window: int


@dataclass(slots=True)
class _Band:
    """A sub-band that a gateway sends in."""

    duty: float
    free_at: float = 0.0

    def take(self, start_s: float, air_s: float) -> bool:
        """Send in it, if the silence after the last frame is over."""
        if start_s < self.free_at:
            return False
        self.free_at = start_s + air_s / self.duty
        return True


@dataclass(slots=True)
class NetworkServer:
    """One server, one gateway, one application.

    Attributes:
        region: whose data rates and duty cycle hold.
        application: ChirpStack's application id.
        refused: downlinks that did not fit their window.
        held: downlinks that met no free band.
    """

    region: Region
    application: str = "52f14cd4-c6f1-4fbd-8f87-4025e1d49242"
    refused: int = 0
    held: int = 0
    _queues: dict[str, deque[Queued]] = field(default_factory=dict)
    _bands: tuple[_Band, _Band] = field(init=False)
    _said: int = 0

    def __post_init__(self) -> None:
        self._bands = (_Band(self.region.duty_rx1), _Band(self.region.duty_rx2))

    # -- up --------------------------------------------------------------------------------

    def join(self, dev_eui: str, dev_addr: str, now_s: float) -> Event:
        """A device has joined: what waited for it is void."""
        self._queues.pop(dev_eui, None)
        return self._event(dev_eui, "join", now_s, {"devAddr": dev_addr})

    def hear(
        self,
        dev_eui: str,
        *,
        dev_addr: str,
        count: int,
        rate: Rate,
        port: int,
        data: bytes,
        now_s: float,
    ) -> Event:
        """One uplink, whichever gateways heard it."""
        told: dict[str, object] = {
            "devAddr": dev_addr,
            "adr": True,
            "dr": rate.dr,
            "fCnt": count,
            "fPort": port,
            "confirmed": False,
            "data": base64.b64encode(data).decode(),
            "rxInfo": [{"gatewayId": "0016c001f11766e7", "rssi": -97, "snr": 2.5, "channel": 2}],
            "txInfo": {
                "frequency": 868_300_000,
                "modulation": {
                    "lora": {
                        "bandwidth": rate.bandwidth_hz,
                        "spreadingFactor": rate.sf,
                        "codeRate": "CR_4_5",
                    }
                },
            },
            "regionConfigId": self.region.name,
        }
        return self._event(dev_eui, "up", now_s, told)

    # -- down ------------------------------------------------------------------------------

    @property
    def commands(self) -> str:
        """The filter under which commands are heard."""
        return f"application/{self.application}/device/+/command/down"

    def take(self, topic: str, payload: bytes) -> bool:
        """Put a downlink into its device's queue; False for what is none."""
        match topic.split("/"):
            case ["application", self.application, "device", dev_eui, "command", "down"]:
                try:
                    told = msgspec.json.decode(payload, type=_Down)
                    data = base64.b64decode(told.data, validate=True)
                except (msgspec.MsgspecError, ValueError):
                    return False
                if told.devEui != dev_eui or not 1 <= told.fPort <= 223:
                    return False
                self._queues.setdefault(dev_eui, deque()).append(Queued(told.fPort, data))
                return True
        return False

    def waiting(self, dev_eui: str) -> int:
        """Downlinks in a device's queue."""
        return len(self._queues.get(dev_eui, ()))

    def answer(self, dev_eui: str, rate: Rate, now_s: float) -> tuple[Downlink, Event] | None:
        """What goes down after an uplink that ended now, and what is said of that."""
        queue = self._queues.get(dev_eui)
        if not queue:
            return None
        port, data = queue.popleft()
        rx1 = self.region.down[rate.dr]
        if len(data) > rx1.frame_bytes:
            self.refused += 1
            return None
        for window, (down, delay_s) in enumerate(((rx1, RX1_S), (self.region.rx2, RX2_S)), 1):
            if len(data) > down.frame_bytes:
                continue
            air_s = airtime_s(down.sf, len(data) + MAC_BYTES, down.bandwidth_hz)
            if self._bands[window - 1].take(now_s + delay_s, air_s):
                event = self._event(dev_eui, "txack", now_s, {"gatewayId": "0016c001f11766e7"})
                return Downlink(port, data, down, air_s, window), event
        self.held += 1
        return None

    def _event(self, dev_eui: str, kind: str, now_s: float, told: Mapping[str, object]) -> Event:
        self._said += 1
        body = {
            "deduplicationId": str(UUID(int=self._said)),
            "time": timestamp(now_s),
            "deviceInfo": {
                "tenantId": "00000000-0000-0000-0000-000000000000",
                "applicationId": self.application,
                "deviceName": dev_eui,
                "devEui": dev_eui,
                "tags": {},
            },
        }
        topic = f"application/{self.application}/device/{dev_eui}/event/{kind}"
        return Event(topic, msgspec.json.encode(body | dict(told)))


def timestamp(now_s: float) -> str:
    """Seconds since the begin of 2026, within that year, as ISO 8601."""
    day, rest = divmod(now_s, 86_400.0)
    month, left = 1, int(day)
    for length in _MONTHS:
        if left < length:
            break
        month, left = month + 1, left - length
    hour, minute, second = int(rest // 3600), int(rest // 60) % 60, rest % 60
    return f"2026-{month:02d}-{left + 1:02d}T{hour:02d}:{minute:02d}:{second:06.3f}+00:00"


class _Down(msgspec.Struct, frozen=True):
    """ChirpStack's command/down."""

    devEui: str  # noqa: N815 - ChirpStack's name
    fPort: int  # noqa: N815 - ChirpStack's name
    data: str
    confirmed: bool = False
