"""How long to wait before the next try: exponential, with full jitter. Pure.

Delays are drawn uniformly from (0, min(longest, first * 2^n)], so that a fleet whose broker comes
back does not come back all at once.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """The bounds, in seconds."""

    first_s: float = 0.5
    longest_s: float = 60.0

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """The wait after `failures` failures in a row (1 or more)."""
        return self.bound_s(failures) * (1.0 - rng.random())

    def bound_s(self, failures: int) -> float:
        """The longest that this wait may be."""
        return min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 32))
