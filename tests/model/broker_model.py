"""The MQTT broker: the bridge's persistent session, and what is retained.

Publishers are always PUBACKed: past the queue limit, or without a session, a message is dropped
and nobody is told. Mids are the lowest free ones, so they are used again and again.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from typing import Final

WINDOW: Final = 4
QUEUE: Final = 6


@dataclass(frozen=True)
class Packet:
    """One PUBLISH on the way up; its number is ours, to tell one from another."""

    number: int
    topic: str
    payload: bytes


@dataclass
class Memory:
    """What a broker may have on its disk."""

    session: bool = False
    queue: list[Packet] = field(default_factory=list)
    in_flight: dict[int, Packet] = field(default_factory=dict)
    retained: dict[str, bytes] = field(default_factory=dict)

    def copy(self) -> "Memory":
        """As it is now."""
        return Memory(self.session, copy(self.queue), copy(self.in_flight), copy(self.retained))


class BrokerModel:
    """One broker; `said` hears every retained message, `released` what it need not keep."""

    def __init__(
        self, said: Callable[[str, bytes], None], released: Callable[[Packet], None]
    ) -> None:
        self.memory = Memory()
        self.acked: set[int] = set()
        self.connection = 0
        self._saved = Memory()
        self._said, self._released = said, released

    def publish_up(self, packet: Packet) -> None:
        """Take a device's message."""
        memory = self.memory
        if memory.session and len(memory.queue) < QUEUE:
            memory.queue.append(packet)

    def connect(self) -> list[tuple[int, Packet]]:
        """Let the bridge in again: what it did not acknowledge comes again, under the same mids."""
        self.connection += 1
        self.memory.session = True
        return list(self.memory.in_flight.items())

    def deliver(self) -> list[tuple[int, Packet]]:
        """Send from the queue what the window has room for."""
        memory = self.memory
        sent = []
        while memory.queue and len(memory.in_flight) < WINDOW:
            mid = next(mid for mid in range(1, WINDOW + 1) if mid not in memory.in_flight)
            memory.in_flight[mid] = memory.queue.pop(0)
            sent.append((mid, memory.in_flight[mid]))
        return sent

    def ack(self, connection: int, mid: int) -> None:
        """PUBACK from the bridge; one on a connection that is gone is never heard."""
        if connection == self.connection and mid in self.memory.in_flight:
            packet = self.memory.in_flight.pop(mid)
            self.acked.add(packet.number)
            self._released(packet)

    def retain(self, suffix: str, payload: bytes) -> None:
        """Keep a message of the bridge."""
        self.memory.retained[suffix] = payload
        self._said(suffix, payload)

    def save(self) -> None:
        """Autosave."""
        self._saved = self.memory.copy()

    def kill(self, *, keeps: bool) -> None:
        """SIGKILL and restart: with the last save, or with nothing."""
        if not keeps:
            self._saved = Memory()
        self.memory = self._saved.copy()
        self.connection += 1
