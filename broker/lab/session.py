"""What the broker remembers of one client: its subscriptions, its window and its queue.

Messages leave the queue for the window in the order they came and stay there until acknowledged,
in any order. Pure: frames to send are returned. Refuses the newest message when the queue is full.
"""

from collections import deque

from broker.lab.limits import Limits
from broker.lab.packets import Publish, encode_publish


class Session:
    """Compared by identity: a client that begins anew is another session."""

    __slots__ = (
        "_inflight",
        "_last_id",
        "_limits",
        "_queue",
        "_queued_bytes",
        "clean",
        "client_id",
        "conn",
        "subscriptions",
    )

    def __init__(self, client_id: str, limits: Limits) -> None:
        self.client_id = client_id
        self.clean = True
        self.conn: int | None = None
        self.subscriptions: set[str] = set()
        self._limits = limits
        self._queue: deque[Publish] = deque()
        self._queued_bytes = 0
        self._inflight: dict[int, Publish] = {}
        self._last_id = 0

    def offer(self, message: Publish) -> bool:
        """Queue a QoS 1 message; False if the queue is full."""
        size = len(message.payload) + len(message.topic)
        if (
            len(self._queue) >= self._limits.max_queued
            or self._queued_bytes + size > self._limits.max_queued_bytes
        ):
            return False
        self._queue.append(message)
        self._queued_bytes += size
        return True

    def fill(self) -> list[bytes]:
        """Move what fits from the queue into the window: the frames to send."""
        frames = []
        while self._queue and len(self._inflight) < self._limits.max_inflight:
            message = self._queue.popleft()
            self._queued_bytes -= len(message.payload) + len(message.topic)
            packet_id = self._next_id()
            self._inflight[packet_id] = message
            frames.append(encode_publish(message, packet_id))
        return frames

    def acknowledge(self, packet_id: int) -> None:
        """Forget a message that its client has; an unknown id is an old acknowledgement."""
        self._inflight.pop(packet_id, None)

    def again(self) -> list[bytes]:
        """Everything unacknowledged, in its order, under its packet id, marked DUP."""
        return [
            encode_publish(message, packet_id, dup=True)
            for packet_id, message in self._inflight.items()
        ]

    def _next_id(self) -> int:
        self._last_id = self._last_id % 65_535 + 1
        while self._last_id in self._inflight:
            self._last_id = self._last_id % 65_535 + 1
        return self._last_id
