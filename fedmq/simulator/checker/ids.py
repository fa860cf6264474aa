"""The id of a log entry: `ms-serial`, milliseconds since 1970 and a serial within them.

Refuses (BadLog) whatever is not two plain numbers of at most 64 bits.
"""

from dataclasses import dataclass

from fedmq.simulator.checker.errors import BadLog


@dataclass(frozen=True, slots=True, order=True)
class Id:
    """Ids are ordered: first by time, then by serial."""

    ms: int = 0
    serial: int = 0

    def __str__(self) -> str:
        return f"{self.ms}-{self.serial}"

    @classmethod
    def read(cls, text: str) -> "Id":
        """Read `ms-serial`."""
        parts = text.split("-")
        if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) <= 20 for p in parts):
            raise BadLog(f"{text!r} is not the id of an entry")
        return cls(int(parts[0]), int(parts[1]))


ORIGIN = Id()
"""Before the first entry."""
