"""When what Redis has replied to is on its disk: INFO persistence in, yes or no out. Pure.

Under `appendfsync always` the reply is the proof. Under `everysec` it proves nothing: with a busy
disk replies ran ahead of the disk by hundreds of writes, and WAITAOF cannot be relied on. What was
written is handed to a sync with the next turn of the second at the latest, or after the sync that
is under way; so it is on the disk when two seconds have passed, nothing waits and nothing is being
synced, at two looks half a second apart (one look may fall between two syncs).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

SETTLE_S: Final = 2.0
"""How long a write may wait before a sync takes it up."""

LOOK_S: Final = 0.5
"""Between two looks."""


def is_quiet(persistence: Mapping[str, Any]) -> bool:
    """Whether nothing waits to be written or synced, as INFO persistence tells."""
    waits = ("aof_pending_bio_fsync", "aof_buffer_length")
    healthy = str(persistence.get("aof_last_write_status", "ok")) == "ok"
    return healthy and not any(int(persistence.get(name, 0)) for name in waits)


@dataclass(slots=True)
class Watch:
    """Looks at Redis until everything written before `since` is on the disk.

    Attributes:
        since: when the last of it was written, in seconds of the caller's clock.
    """

    since: float
    _quiet_at: float | None = None

    def look(self, persistence: Mapping[str, Any], now: float) -> bool:
        """One more look; True when it is sure."""
        if now - self.since < SETTLE_S or not is_quiet(persistence):
            self._quiet_at = None
            return False
        if self._quiet_at is None:
            self._quiet_at = now
        return now - self._quiet_at >= LOOK_S
