"""Which sequence numbers of one (device, boot) have been settled, and how.

An anti-replay window after RFC 4303, section 3.4.3: the highest number seen and one outcome byte
for each of the 64 numbers that end there. A device never has more than 64 numbers open, so what
lies below the window is settled (or was superseded before it was ever sent); what lies inside it
is told by its byte. First arrivals *do* come below the highest number.

Pure values: `settle` returns a new window.
"""

from dataclasses import dataclass
from typing import Final

from schemas.names import Seq
from schemas.outcomes import FOLDED

SPAN: Final = 64
"""Open sequence numbers a device may have at most."""


@dataclass(frozen=True, slots=True)
class SeqWindow:
    """The settled numbers of one (device, boot).

    Attributes:
        top: the highest number seen, 0 before the first.
        outcomes: `outcomes[i]` is what became of `top - i`; 0 where nothing arrived.
    """

    top: int = 0
    outcomes: bytes = b""

    def outcome(self, seq: Seq) -> int:
        """What became of `seq`: 0 if it never arrived, FOLDED if it fell below the window."""
        age = self.top - seq
        if age < 0:
            return 0
        if age >= SPAN:
            return FOLDED
        return self.outcomes[age] if age < len(self.outcomes) else 0

    def settle(self, seq: Seq, outcome: int) -> "SeqWindow":
        """Record the first outcome of `seq`, sliding the window up when it is the highest.

        A number that is settled already, or lies below the window, changes nothing.
        """
        if self.outcome(seq):
            return self
        if seq > self.top:
            gap = bytes(min(seq - self.top - 1, SPAN)) if self.top else b""
            return SeqWindow(seq, (bytes([outcome]) + gap + self.outcomes)[:SPAN])
        age = self.top - seq
        known = bytearray(self.outcomes.ljust(age + 1, b"\0"))
        known[age] = outcome
        return SeqWindow(self.top, bytes(known))

    @property
    def low(self) -> int:
        """The highest number up to which every number is settled."""
        low = max(0, self.top - SPAN)
        while low < self.top and self.outcome(Seq(low + 1)):
            low += 1
        return low

    @property
    def settled_above_low(self) -> int:
        """Bit i tells whether `low + 1 + i` is settled: an uint64."""
        low = self.low
        return sum(
            1 << (seq - low - 1) for seq in range(low + 1, self.top + 1) if self.outcome(Seq(seq))
        )


def is_settled(seq: Seq, low: int, bits: int) -> bool:
    """Read a Receipt: tell whether `seq` is settled, given `low` and the 64-bit map above it."""
    if seq <= low:
        return True
    place = seq - low - 1
    return place < SPAN and bool(bits >> place & 1)
