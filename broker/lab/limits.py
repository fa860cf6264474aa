"""The bounds of the lab broker. Pure; refuses bounds that contradict each other.

The defaults of the window and the queue are mosquitto's, so that what fits here fits there.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of anything a client, or all of them together, may have."""

    max_packet: int = 16 * 1024 * 1024
    max_inflight: int = 20
    max_queued: int = 1000
    max_queued_bytes: int = 64 * 1024 * 1024
    max_send_buffer: int = 16 * 1024 * 1024
    max_retained_bytes: int = 256 * 1024 * 1024
    max_connections: int = 1000
    max_sessions: int = 10_000
    connect_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if min(vars(self).values()) <= 0:
            raise ValueError("every limit is positive")
        if self.max_inflight > 65_535:
            raise ValueError("max_inflight: there are 65535 packet ids")
        if min(self.max_queued_bytes, self.max_send_buffer) < self.max_packet:
            raise ValueError("max_queued_bytes, max_send_buffer: one packet of max_packet must fit")
