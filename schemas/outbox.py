"""What the aggregator asks the bridge to say: records of a task's outbox stream.

The bridge carries them out in order and never looks inside a payload. `Say` is one message below
the task's topic; `Spread` is a blob to publish in retained chunks before whatever follows;
`Sweep` clears the chunks of a blob that nobody needs any more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from schemas.errors import InvariantError


@dataclass(frozen=True, slots=True)
class Say:
    """Publish `payload` at {prefix}/{task}/{suffix}, QoS 1."""

    suffix: str
    payload: bytes
    retain: bool


@dataclass(frozen=True, slots=True)
class Spread:
    """Publish a registered blob in chunks, retained, and wait for every PUBACK."""

    blob: str
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """Clear the retained chunks of a blob."""

    blob: str
    chunks: int


@dataclass(frozen=True, slots=True)
class End:
    """The task was deleted; this was its last record."""


Record: TypeAlias = Say | Spread | Sweep | End


def to_fields(record: Record) -> dict[bytes, bytes]:
    """Lay a record out as stream fields."""
    match record:
        case Say(suffix, payload, retain):
            kind = b"keep" if retain else b"say"
            return {b"k": kind, b"t": suffix.encode(), b"p": payload}
        case Spread(blob, chunk_bytes):
            return {b"k": b"spread", b"b": blob.encode(), b"n": str(chunk_bytes).encode()}
        case Sweep(blob, chunks):
            return {b"k": b"sweep", b"b": blob.encode(), b"n": str(chunks).encode()}
        case End():
            return {b"k": b"end"}


def from_fields(fields: Mapping[bytes, bytes]) -> Record:
    """Read stream fields. Raises InvariantError: the outbox holds only what fedmq wrote."""
    match fields.get(b"k"):
        case b"keep" | b"say" as kind:
            return Say(fields[b"t"].decode(), fields[b"p"], retain=kind == b"keep")
        case b"spread":
            return Spread(fields[b"b"].decode(), int(fields[b"n"]))
        case b"sweep":
            return Sweep(fields[b"b"].decode(), int(fields[b"n"]))
        case b"end":
            return End()
        case kind:
            msg = f"the outbox holds a record of kind {kind!r}"
            raise InvariantError(msg)
