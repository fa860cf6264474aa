"""Fairness: who sends more than the mean counts less.

    factor = (mean / own)^fairness, at most 1

by folded updates a device. The mean is over the devices of which an update was folded; who has
sent no more than that, or nothing yet, counts fully. Integers but for the last step, which
float32 rounds where it meets an array.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Shares:
    """How many devices have sent how much: follows from the devices' records alone."""

    devices: int = 0
    folded: int = 0

    def factor(self, own: int, fairness: float) -> float:
        """The factor of a device of which `own` updates were folded."""
        if not fairness or own * self.devices <= self.folded:
            return 1.0
        return float((self.folded / (own * self.devices)) ** fairness)

    def count(self, own: int) -> None:
        """One more of a device that had `own`."""
        self.devices += not own
        self.folded += 1

    def forget(self, own: int) -> None:
        """A device that had `own` is erased."""
        self.devices -= bool(own)
        self.folded -= own


def shares_of(folded: Iterable[int]) -> Shares:
    """Count anew, from every device's folded updates."""
    counts = [own for own in folded if own]
    return Shares(len(counts), sum(counts))
