"""What may go up now, of so many bytes a day: a token bucket. Pure.

It fills by a day's bytes in a day and holds no more than a day's; every PUBLISH of an update is
taken out of it, re-sends too. So after a day of silence two days' bytes may go up within 24 hours;
over longer times the mean holds. It begins with one packet, whatever its size, so that a fleet that
is set up, or has lost its disks, does not send a day's bytes at once.

While a device runs, time is told by a timer that nobody sets; where it is off, or so fast asleep
that the timer stands, by its clock, as soon as that is set. A clock that is put forward fills the
bucket at most; one that is put back or never set lets no time have passed while the device was off.
What has flown in while it was on is written down when a link ends: so it is not locked out.
"""

import struct
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Final

DAY_S: Final = 86_400.0

CLOCK_IS_SET_S: Final = 1.6e9
"""A clock that tells an earlier time (September 2020) has never been set."""

_RECORD: Final = struct.Struct("<ddI")

_MOMENT_S: Final = 1e-3
"""A shorter wait is none: sums of floats are not exact."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What may go up.

    Attributes:
        level: bytes in the bucket at that time, below 0 after a packet that is larger than a day's;
            None: nothing was ever taken, there is one packet in it.
        at_s: when that was, by the timer.
        packet: bytes of the newest packet that was taken; 0: there was none.
        clock_s: when it was by the clock, in seconds since 1970; 0: that was not set.
    """

    level: float | None = None
    at_s: float = 0.0
    packet: int = 0
    clock_s: float = field(default=0.0, compare=False)

    def wait_s(self, size: int, day_bytes: float, now_s: float) -> float:
        """How long until `size` bytes may go up, 0 where there is no bound.

        More than a day's bytes may go up when the bucket is full.
        """
        if not day_bytes or self.level is None:
            return 0.0
        missing = min(size, day_bytes) - self._level(day_bytes, now_s)
        wait_s = missing * DAY_S / day_bytes
        return wait_s if wait_s > _MOMENT_S else 0.0

    def without(self, size: int, day_bytes: float, now_s: float) -> "Allowance":
        """What is left when a packet of `size` bytes goes up; the same where there is no bound."""
        if not day_bytes:
            return self
        before = size if self.level is None else self._level(day_bytes, now_s)
        return Allowance(before - size, now_s, size)

    def until(self, day_bytes: float, now_s: float) -> "Allowance":
        """The same with what has flown in so far."""
        if not day_bytes or self.level is None:
            return self
        return Allowance(self._level(day_bytes, now_s), now_s, self.packet)

    def by_clock(self, clock_s: float, now_s: float) -> "Allowance":
        """The same, when the clock tells that more time has passed than the timer does."""
        if min(self.clock_s, clock_s) < CLOCK_IS_SET_S:
            return self
        return replace(self, at_s=min(self.at_s, now_s - (clock_s - self.clock_s)))

    def _level(self, day_bytes: float, now_s: float) -> float:
        level = self.level or 0.0
        return min(day_bytes, level + max(0.0, now_s - self.at_s) * day_bytes / DAY_S)


def to_disk(allowance: Allowance, clock_s: float) -> bytes:
    """Write an allowance down, at `clock_s` seconds since 1970 as the device's clock tells them."""
    told_s = clock_s if clock_s >= CLOCK_IS_SET_S else 0.0
    return _RECORD.pack(allowance.level or 0.0, told_s, allowance.packet)


def from_disk(raw: bytes | None, clock_s: float, now_s: float) -> Allowance:
    """Read one that was written in an earlier life, and let the time since have passed.

    What cannot be read counts as never used. `now_s` is the timer's.
    """
    if raw is None or len(raw) != _RECORD.size:
        return Allowance()
    level, told_s, packet = _RECORD.unpack(raw)
    if not isfinite(level) or not isfinite(told_s):
        return Allowance()
    return Allowance(level, now_s, packet, told_s).by_clock(clock_s, now_s)


def publish_bytes(topic: str, message: int) -> int:
    """Bytes of a PUBLISH with QoS 1 and a message of so many bytes (MQTT 3.1.1, section 3.3)."""
    rest = 2 + len(topic.encode()) + 2 + message
    length = 1 + sum(rest >= 1 << bits for bits in (7, 14, 21))
    return 1 + length + rest


def told(wait_s: float) -> str:
    """A wait in words: `40 s`, `14 min`, `3 h`."""
    if wait_s < 90:
        return f"{max(1, round(wait_s))} s"
    return f"{round(wait_s / 60)} min" if wait_s < 90 * 60 else f"{round(wait_s / 3600)} h"
