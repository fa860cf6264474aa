"""Redis as a list of its own pasts: every write is a new one, and a crash goes back to one.

`always`: a write is durable before its reply. `everysec`: a SIGKILL on a busy disk loses what was
not synced, replies or not. `replica`: a failover loses what the replica did not have yet.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from schemas.log import Body, Entry, EntryId
from schemas.outbox import Record

Mode: TypeAlias = Literal["always", "everysec", "replica"]
Place: TypeAlias = tuple[int, int]
"""Where a record lies in the outbox: (serial of its commit, number)."""


@dataclass(frozen=True)
class Data:
    """Everything of one task at one moment."""

    log: tuple[Entry, ...] = ()
    packets: frozenset[int] = frozenset()
    serial: int = 0
    small: bytes = b""
    vectors: Mapping[str, bytes] = field(default_factory=dict)
    windows: Mapping[str, bytes] = field(default_factory=dict)
    devices: Mapping[str, bytes] = field(default_factory=dict)
    manifest: bytes = b""
    outbox: tuple[tuple[Place, Record], ...] = ()
    said: Place = (0, 0)
    holder: str = ""


class RedisModel:
    """One server, or a master and its replica."""

    def __init__(self, mode: Mode, first: Body) -> None:
        self.mode: Mode = mode
        self.run_id = 1
        self.ms = 1_000
        self.ever_logged: set[int] = set()
        self._pasts = [Data(log=(Entry(EntryId(self.ms, 0), first),))]
        self._synced = self._copied = 0

    @property
    def data(self) -> Data:
        """What a client reads now."""
        return self._pasts[-1]

    @property
    def now(self) -> int:
        """How many writes there have been, of those that are left."""
        return len(self._pasts) - 1

    def write(self, **changes: Any) -> None:
        """Carry out one atomic write."""
        self._pasts.append(replace(self.data, **changes))
        if self.mode != "everysec":
            self._synced = self.now

    def append(self, body: Body, packet: int) -> None:
        """XADD to the log."""
        self.ms += 1
        entry = Entry(EntryId(self.ms, 0), body)
        self.write(log=(*self.data.log, entry), packets=self.data.packets | {packet})
        self.ever_logged.add(packet)

    def is_safe(self, moment: int) -> bool:
        """Whether no crash takes back what was written until then."""
        return moment <= (self._copied if self.mode == "replica" else self._synced)

    def make_safe(self, writes: int = 1_000_000) -> None:
        """Sync, and let the replica have so many writes more."""
        self._synced = self.now
        self._copied = min(self.now, self._copied + writes)

    def kill(self, lost: int) -> None:
        """SIGKILL and restart, or a failover: up to `lost` writes are gone, if they can be."""
        floor = self._copied if self.mode == "replica" else self._synced
        del self._pasts[max(floor, self.now - lost) + 1 :]
        self._synced = self._copied = self.now
        self.run_id += 1
