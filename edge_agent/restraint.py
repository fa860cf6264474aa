"""When a device may send, while the server is busy: what topic `busy` has said. Pure.

While it is busy, one update after each pause (+-20 %), and no more: a server that died while it
was busy never silences a fleet for ever. When it is over, a fleet does not come back all at once.
"""

import random
from typing import Final

from schemas.watch import Busy

BACK_S: Final = 5.0
"""Within this a fleet comes back when the server is no longer busy."""


class Restraint:
    """What one connection has heard.

    Args:
        rng: for the jitter.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._busy: Busy | None = None
        self._free_at = 0.0

    def hear(self, busy: Busy | None, now: float) -> None:
        """The server is busy, or, None, no longer. Said again it puts no try off."""
        if busy is not None:
            before, self._busy = self._busy, busy
            then = self._after_a_pause(now)
            self._free_at = then if before is None else min(self._free_at, then)
        elif self._busy is not None:
            longest_s = min(self._busy.pause_s, BACK_S)
            self._busy, self._free_at = None, now + self._rng.uniform(0.0, longest_s)

    def left_s(self, now: float) -> float:
        """How long to send nothing."""
        return max(0.0, self._free_at - now)

    def sent(self, now: float) -> None:
        """One update went out."""
        if self._busy is not None:
            self._free_at = self._after_a_pause(now)

    def _after_a_pause(self, now: float) -> float:
        pause_s = 0.0 if self._busy is None else self._busy.pause_s
        return now + pause_s * self._rng.uniform(0.8, 1.2)
