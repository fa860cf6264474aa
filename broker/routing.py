"""Where an uplink message goes: a topic and bytes in, a log entry or a refusal out. Pure.

Never opens the envelope.
"""

from dataclasses import dataclass

from schemas.log import HEAD_BYTES, Arrived
from schemas.names import TaskName
from schemas.topics import parse_uplink


@dataclass(frozen=True, slots=True)
class Routed:
    """For the log of this task."""

    task: TaskName
    arrived: Arrived


@dataclass(frozen=True, slots=True)
class Unroutable:
    """A topic that names no task and device; its bytes are bounded."""

    topic: str
    data: bytes


def route(prefix: str, topic: str, payload: bytes, *, max_bytes: int) -> Routed | Unroutable:
    """Read the topic; of an oversized message keep only the head."""
    place = parse_uplink(prefix, topic)
    if place is None:
        return Unroutable(topic[:256], payload[:HEAD_BYTES])
    data = payload if len(payload) <= max_bytes else payload[:HEAD_BYTES]
    return Routed(place.task, Arrived(place.device, place.shard, data, len(payload)))
