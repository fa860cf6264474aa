"""The entries of a task's log: the only thing the fold depends on.

Written by the bridge (arrivals), by `fedmq task` (specifications) and by the aggregator (ticks);
read by the fold. A Redis stream entry is a flat map of bytes; time is the entry's id.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from schemas.errors import InvariantError
from schemas.names import DeviceId

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


Body: TypeAlias = Arrived | SpecSet | Tick


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
        case kind:
            msg = f"the log holds an entry of kind {kind!r}, which this version cannot fold"
            raise InvariantError(msg)
