"""What a network server says over MQTT, as values. Pure; nothing that is sent here raises.

    ChirpStack v4         application/{app}/device/{dev_eui}/event/{up|join|txack}
    The Things Stack v3   v3/{app}@{tenant}/devices/{device}/{up|join|down/sent}

Both as JSON. Unknown fields are passed over; what is absent is zero, as protobuf's JSON has it.
Whatever cannot be used is `Refused`, with its reason. Identity is the DevEUI, lower-case; a frame
counts once by DevEUI, session and FCnt, however many gateways heard it or how often it is said.
"""

import binascii
import re
from base64 import b64decode
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

from broker.lorawan.regions import LEAST_FRAME
from schemas.names import Boot, DeviceId, Seq
from schemas.short import AIR_BYTES

EVENT_BYTES: Final = 1 << 16
"""The longest event that is read: every gateway that heard a frame adds some 700 bytes."""

FRAME_BYTES: Final = 242
"""The longest payload of a LoRaWAN frame (RP002, without a repeater)."""

Server: TypeAlias = Literal["chirpstack", "thethings"]
Why: TypeAlias = Literal[
    "other_event", "too_long", "not_json", "no_session", "encrypted", "not_base64", "port", "size"
]

_CHIRPSTACK: Final = re.compile(r"application/([^/+#]+)/device/([^/+#]+)/event/(up|join|txack)")
_THETHINGS: Final = re.compile(r"v3/([^/+#]+)/devices/([^/+#]+)/(up|join|down/sent)")

Eui = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{16}\Z")]
Short = Annotated[str, msgspec.Meta(max_length=64)]
Data = Annotated[str, msgspec.Meta(max_length=512)]
U8 = Annotated[int, msgspec.Meta(ge=0, le=255)]
U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


@dataclass(frozen=True, slots=True)
class Uplink:
    """One frame that a device has sent.

    Attributes:
        device: its DevEUI.
        boot: of its session: the first 4 bytes of SHA-256(DevEUI, session), never 0.
        seq: FCnt + 1.
        port: FPort, 1 to 223.
        frame: as it came over the air, decrypted.
        sf: the spreading factor it was sent with; 0: not told.
        dr: the data rate's number; -1: not told.
        bandwidth_hz: of the channel; 0: not told.
        answer: the topic under which the network server takes a downlink for it.
    """

    device: DeviceId
    boot: Boot
    seq: Seq
    port: int
    frame: bytes
    sf: int
    dr: int
    bandwidth_hz: int
    answer: str

    @property
    def polls(self) -> bool:
        """Whether it holds no update: the device only opens its windows."""
        return len(self.frame) == AIR_BYTES


@dataclass(frozen=True, slots=True)
class Joined:
    """A device has begun a session."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class Sent:
    """A gateway has sent the downlink that was waiting for this device."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing that can be used: a reason that is counted, and a sentence for people."""

    why: Why
    detail: str


Event: TypeAlias = Uplink | Joined | Sent | Refused


class _Device(msgspec.Struct, frozen=True):
    devEui: Eui  # noqa: N815 - ChirpStack's name


class _Up(msgspec.Struct, frozen=True):
    """ChirpStack's integration.UplinkEvent; join and txack have a part of its fields."""

    deviceInfo: _Device  # noqa: N815 - ChirpStack's name
    devAddr: Short = ""  # noqa: N815
    fCnt: U32 = 0  # noqa: N815
    fPort: U8 = 0  # noqa: N815
    dr: U8 = 0
    data: Data = ""
    joinServerContext: msgspec.Raw = msgspec.Raw(b"")  # noqa: N815


class _Lora(msgspec.Struct, frozen=True):
    spreading_factor: U8 = 0
    bandwidth: U32 = 0


class _DataRate(msgspec.Struct, frozen=True):
    lora: _Lora = _Lora()


class _Settings(msgspec.Struct, frozen=True):
    data_rate: _DataRate = _DataRate()


class _Ids(msgspec.Struct, frozen=True):
    dev_eui: Eui
    dev_addr: Short = ""


class _Message(msgspec.Struct, frozen=True):
    f_port: U8 = 0
    f_cnt: U32 = 0
    frm_payload: Data = ""
    session_key_id: Short = ""
    settings: _Settings = _Settings()


class _ThingsUp(msgspec.Struct, frozen=True):
    """The Things Stack's ApplicationUp, as far as it is read."""

    end_device_ids: _Ids
    uplink_message: _Message = _Message()


def read_event(topic: str, payload: bytes) -> Event:
    """Read what a network server has published."""
    if len(payload) > EVENT_BYTES:
        return Refused("too_long", f"{len(payload)} bytes are more than {EVENT_BYTES}")
    try:
        if match := _CHIRPSTACK.fullmatch(topic):
            return _chirpstack(match, msgspec.json.decode(payload, type=_Up))
        if match := _THETHINGS.fullmatch(topic):
            return _thethings(match, msgspec.json.decode(payload, type=_ThingsUp))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        return Refused("not_json", f"{topic[:80]}: {exc}")
    return Refused("other_event", topic[:80])


def session_boot(device: DeviceId, session: str) -> Boot:
    """The number that stands for one session of a device: what FCnt begins anew with."""
    digest = sha256(f"{device}\0{session}".encode()).digest()
    return Boot(int.from_bytes(digest[:4], "big") or 1)


def _chirpstack(match: re.Match[str], event: _Up) -> Event:
    app, _, kind = match.groups()
    device = DeviceId(event.deviceInfo.devEui.lower())
    if kind == "join":
        return Joined(device)
    if kind == "txack":
        return Sent(device)
    if bytes(event.joinServerContext) not in {b"", b"null"}:
        return Refused("encrypted", f"{device}: give ChirpStack the AppSKey, it must decrypt")
    return _uplink(
        device,
        session=event.devAddr.lower(),
        count=event.fCnt,
        port=event.fPort,
        data=event.data,
        rate=(0, event.dr, 0),
        answer=f"application/{app}/device/{device}/command/down",
    )


def _thethings(match: re.Match[str], event: _ThingsUp) -> Event:
    app, name, kind = match.groups()
    device = DeviceId(event.end_device_ids.dev_eui.lower())
    if kind == "join":
        return Joined(device)
    if kind == "down/sent":
        return Sent(device)
    message = event.uplink_message
    lora = message.settings.data_rate.lora
    return _uplink(
        device,
        session=message.session_key_id or event.end_device_ids.dev_addr.lower(),
        count=message.f_cnt,
        port=message.f_port,
        data=message.frm_payload,
        rate=(lora.spreading_factor, -1, lora.bandwidth),
        answer=f"v3/{app}/devices/{name}/down/replace",
    )


def _uplink(
    device: DeviceId,
    *,
    session: str,
    count: int,
    port: int,
    data: str,
    rate: tuple[int, int, int],
    answer: str,
) -> Uplink | Refused:
    if not session:
        return Refused("no_session", f"{device}: neither an address nor a session key is told")
    if not 1 <= port <= 223:
        return Refused("port", f"{device}: FPort {port} is not an application's (1 to 223)")
    if count == 0xFFFF_FFFF:  # its number would not fit: join again, as LoRaWAN asks
        return Refused("no_session", f"{device}: FCnt {count} ends a session")
    try:
        frame = b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return Refused("not_base64", f"{device}: the payload is not base64")
    if len(frame) != AIR_BYTES and not LEAST_FRAME <= len(frame) <= FRAME_BYTES:
        return Refused("size", f"{device}: {size_refusal(len(frame))}")
    sf, dr, bandwidth = rate
    return Uplink(
        device,
        session_boot(device, session),
        Seq(count + 1),
        port,
        frame,
        sf,
        dr,
        bandwidth,
        answer,
    )


def size_refusal(size: int) -> str:
    """Why frames of this size hold no update, and what to do."""
    if size > FRAME_BYTES:
        return f"{size} bytes are more than LoRaWAN's {FRAME_BYTES}"
    return (
        f"{size} bytes hold an envelope and hardly an update: forbid the data rate whose frames "
        "have 11 bytes (US915 DR0, AU915 and AS923 DR2) in the device profile's ADR"
    )
