"""Whether devices must be asked to wait: what the bridge has seen of Redis, in; a word, out. Pure.

Withheld acknowledgements throttle no MQTT publisher: past its queue limit a broker drops what comes
in, and tells nobody. So the bridge says `busy`, devices rest, and what was dropped is sent again.

    full     Redis refuses to write: no memory, no disk, too few replicas; or soon will for memory
    slow     a batch took longer than it should
    behind   the task's log is as large as it may be: what comes in for it is dropped
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from schemas.names import TaskName

CALM_S: Final = 5.0
"""How long batches must be quick again before a slow Redis counts as quick."""

RELIEF: Final = 0.9
"""A log that was too large must fall to this share of its bound."""

FULL: Final = (0.85, 0.9)
"""Above the latter share of its `maxmemory` Redis counts as full until it is not above the former:
what is under way, and what folding itself needs, must still find room."""

PAUSE_S: Final = (2.0, 60.0)
"""How long devices are asked to rest between tries: at first, and at the longest."""


@dataclass(slots=True)
class Gauge:
    """What one bridge has seen, in seconds of whatever clock the caller has.

    Attributes:
        slow_s: a batch that takes longer is slow.
        log_max_bytes: of one task's log; 0: no bound.
    """

    slow_s: float
    log_max_bytes: int
    _refused: bool = False
    _filled: bool = False
    _slow_at: float | None = None
    _behind: set[TaskName] = field(default_factory=set)

    def appended(self, seconds: float, now: float) -> None:
        """Redis has taken a batch, after so long."""
        self._refused = False
        if seconds > self.slow_s:
            self._slow_at = now

    def refused(self) -> None:
        """Redis has refused a batch."""
        self._refused = True

    def filled(self, used: int, maximum: int) -> None:
        """Redis uses so many bytes of those it may; a maximum of 0 is none."""
        low, high = FULL
        self._filled = used > (low if self._filled else high) * maximum and maximum > 0

    def weighed(self, task: TaskName, log_bytes: int) -> None:
        """A task's log takes so much memory."""
        bound = self.log_max_bytes
        if bound and log_bytes > bound:
            self._behind.add(task)
        elif log_bytes <= RELIEF * bound or not bound:
            self._behind.discard(task)

    def keep_only(self, tasks: Collection[TaskName]) -> None:
        """Forget tasks that were deleted."""
        self._behind &= set(tasks)

    def is_behind(self, task: TaskName) -> bool:
        """Whether nothing more is taken for this task."""
        return task in self._behind

    def why(self, task: TaskName, now: float) -> str:
        """Why devices of this task must wait; empty: they need not."""
        if self._refused or self._filled:
            return "full"
        if task in self._behind:
            return "behind"
        if self._slow_at is not None and now - self._slow_at < CALM_S:
            return "slow"
        return ""


def pause_s(busy_for_s: float) -> float:
    """How long devices should rest between tries: the longer it has lasted, the longer."""
    shortest, longest = PAUSE_S
    return min(longest, max(shortest, busy_for_s))
