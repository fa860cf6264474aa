"""The entries of a task's log: the only thing the fold depends on.

Written by the bridge (arrivals), by the `fedmq` command (what people decide) and by the aggregator
(ticks, evaluations, guides); read by the fold. A Redis stream entry is a flat map of bytes; time is
the entry's id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from schemas.errors import InvariantError
from schemas.names import DeviceId
from schemas.params import MAX_PARAMS
from schemas.task import Phase

HEAD_BYTES: Final = 4096
"""What is kept of an oversized or refused message, in bytes."""


@dataclass(frozen=True, slots=True, order=True)
class EntryId:
    """A stream id: milliseconds since 1970 as Redis' clock told them, and a serial within them."""

    ms: int = 0
    serial: int = 0

    def __str__(self) -> str:
        return f"{self.ms}-{self.serial}"

    @classmethod
    def parse(cls, text: str | bytes) -> "EntryId":
        """Read `ms-serial`."""
        ms, _, serial = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(ms), int(serial or 0))


@dataclass(frozen=True, slots=True)
class Arrived:
    """An update as it came in: who sent it (the topic says so), under which shard, and its bytes.

    `size` is the whole message's; `data` is only its head when that was too large to be carried.
    """

    device: DeviceId
    shard: str
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class SpecSet:
    """From here on the task follows this TaskSpec (JSON)."""

    json: bytes


@dataclass(frozen=True, slots=True)
class Tick:
    """A deadline has passed: what waits for time may happen now."""


@dataclass(frozen=True, slots=True)
class PhaseSet:
    """From here on the task runs, rests, or is finished."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class DeviceSet:
    """From here on this device is taken from or not, and bears these tags; None leaves as is."""

    device: DeviceId
    banned: bool | None = None
    tags: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeviceErased:
    """Forget all that is kept of a device, and take nothing from it again."""

    device: DeviceId


@dataclass(frozen=True, slots=True)
class PinSet:
    """Devices that bear the tag are held at a published version; None lets them go."""

    tag: str
    version: int | None


@dataclass(frozen=True, slots=True)
class ModelSet:
    """Here the model becomes another one: little-endian float32, all of its parameters.

    `version` is the published version whose parameters they are; what came after it is withdrawn.
    """

    params: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The server has measured a version on its own held-out examples."""

    version: int
    num_examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Guided:
    """The server has trained itself, from a published version, on a small data set of its own.

    `delta` is little-endian float32: what travels of `w_trained - w_version`.
    """

    version: int
    delta: bytes


@dataclass(frozen=True, slots=True)
class ReleaseSet:
    """People decide about the version that waits: everybody gets it, or nobody."""

    version: int
    publish: bool


@dataclass(frozen=True, slots=True)
class EpochSet:
    """From here on the task lives in another epoch: it was restored from a file."""

    epoch: int


Body: TypeAlias = (
    Arrived
    | SpecSet
    | Tick
    | PhaseSet
    | DeviceSet
    | DeviceErased
    | PinSet
    | ModelSet
    | Evaluated
    | Guided
    | ReleaseSet
    | EpochSet
)

_Command: TypeAlias = PhaseSet | DeviceSet | DeviceErased | PinSet | ReleaseSet | EpochSet

_COMMANDS: Final[dict[bytes, type[_Command]]] = {
    b"phase": PhaseSet,
    b"device": DeviceSet,
    b"erase": DeviceErased,
    b"pin": PinSet,
    b"release": ReleaseSet,
    b"epoch": EpochSet,
}
"""Entries whose fields are one JSON object."""

_KINDS: Final = {kind: name for name, kind in _COMMANDS.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log."""

    id: EntryId
    body: Body


def to_fields(body: Body) -> dict[bytes, bytes]:
    """Lay a body out as stream fields."""
    match body:
        case Arrived(device, shard, data, size):
            fields = {b"k": b"up", b"d": device.encode(), b"s": shard.encode(), b"p": data}
            return fields if size == len(data) else fields | {b"n": str(size).encode()}
        case SpecSet(json):
            return {b"k": b"spec", b"p": json}
        case Tick():
            return {b"k": b"tick"}
        case ModelSet(data, version) | Guided(version, data):
            kind = b"model" if isinstance(body, ModelSet) else b"guide"
            return {b"k": kind, b"v": str(version).encode(), b"p": data}
        case Evaluated():
            return {b"k": b"eval", b"p": msgspec.json.encode(body)}
        case _:
            return {b"k": _KINDS[type(body)], b"p": msgspec.json.encode(body)}


def from_fields(fields: Mapping[bytes, bytes]) -> Body:
    """Read stream fields. Raises InvariantError: the log holds only what fedmq wrote."""
    match fields.get(b"k"):
        case b"up":
            data = fields[b"p"]
            size = int(fields.get(b"n", len(data)))
            device = DeviceId(fields[b"d"].decode())
            return Arrived(device, fields[b"s"].decode(), data, size)
        case b"spec":
            return SpecSet(fields[b"p"])
        case b"tick":
            return Tick()
        case b"model" | b"guide" as kind:
            version, data = int(fields[b"v"]), fields[b"p"]
            return ModelSet(data, version) if kind == b"model" else _guided(version, data)
        case b"eval":
            return msgspec.json.decode(fields[b"p"], type=Evaluated)
        case kind if kind in _COMMANDS:
            return msgspec.json.decode(fields[b"p"], type=_COMMANDS[kind])
        case kind:
            msg = f"the log holds an entry of kind {kind!r}, which this version cannot fold"
            raise InvariantError(msg)


def _guided(version: int, delta: bytes) -> Guided:
    if version < 0 or not delta or len(delta) % 4 or len(delta) > 4 * MAX_PARAMS:
        msg = f"the log holds a guide of {len(delta)} bytes for version {version}"
        raise InvariantError(msg)
    return Guided(version, delta)
