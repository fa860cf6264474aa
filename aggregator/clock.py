"""Time as the log tells it. Pure.

An entry's id is the time at which Redis wrote it. When Redis' clock is set back, its ids go on from
the last one and stand still until the clock has caught up; deadlines would wait as long. So time is
Redis', or the newest entry's and what has passed since, whichever is later.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class LogClock:
    """One task's time; `monotonic_s` is of any clock that never goes back."""

    _newest_ms: int = -1
    _since_s: float = 0.0

    def now_ms(self, newest_ms: int, redis_ms: int, monotonic_s: float) -> int:
        """Milliseconds since 1970, never before `newest_ms`, the newest entry's."""
        if newest_ms != self._newest_ms:
            self._newest_ms, self._since_s = newest_ms, monotonic_s
        return max(redis_ms, newest_ms + int((monotonic_s - self._since_s) * 1000))
