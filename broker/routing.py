"""Where an uplink message goes: a topic and bytes in, a log entry or a refusal out. Pure.

Never opens the envelope.
"""

from dataclasses import dataclass
from typing import Final, TypeAlias

from schemas.asking import ASK_BYTES
from schemas.log import HEAD_BYTES, Arrived
from schemas.names import DeviceId, TaskName
from schemas.topics import parse_ask, parse_busy, parse_state, parse_uplink

STATE_BYTES: Final = 256
"""What is kept of a device's birth or will."""


@dataclass(frozen=True, slots=True)
class Routed:
    """For the log of this task."""

    task: TaskName
    arrived: Arrived


@dataclass(frozen=True, slots=True)
class Present:
    """A device's birth or will: for people to look at; the fold does not depend on it."""

    task: TaskName
    device: DeviceId
    data: bytes


@dataclass(frozen=True, slots=True)
class Cried:
    """What a bridge, this one or another, has said of being busy; empty: it is no longer."""

    task: TaskName
    data: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A device asks for a diff; its bytes are bounded."""

    task: TaskName
    device: DeviceId
    data: bytes


@dataclass(frozen=True, slots=True)
class Unroutable:
    """A topic that names no task and device; its bytes are bounded."""

    topic: str
    data: bytes


Message: TypeAlias = Routed | Present | Cried | Asked | Unroutable


def route(prefix: str, topic: str, payload: bytes, *, max_bytes: int) -> Message:
    """Read the topic; of an oversized message keep only the head."""
    here = parse_state(prefix, topic)
    if here is not None:
        return Present(here.task, here.device, payload[:STATE_BYTES])
    whose = parse_busy(prefix, topic)
    if whose is not None:
        return Cried(whose, payload[:STATE_BYTES])
    question = parse_ask(prefix, topic)
    if question is not None:
        return Asked(question.task, question.device, payload[: ASK_BYTES + 1])
    place = parse_uplink(prefix, topic)
    if place is None:
        return Unroutable(topic[:256], payload[:HEAD_BYTES])
    data = payload if len(payload) <= max_bytes else payload[:HEAD_BYTES]
    return Routed(place.task, Arrived(place.device, place.shard, data, len(payload)))
