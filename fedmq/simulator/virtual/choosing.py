"""Who is given a slot: a few are drawn, and the one that is wanted most is taken. Pure.

Drawing a few instead of ranking all (Mitzenmacher, "The Power of Two Choices in Randomized Load
Balancing", 2001) keeps the cost of a choice the same in every fleet.
"""

from collections.abc import Callable, Collection
from itertools import islice
from typing import Final

import numpy as np

DRAWN: Final = 8
"""Candidates for a slot."""

TRIES: Final = 256
"""After so many draws it is chosen among whom was found; in a large fleet that may be nobody."""

SMALL: Final = 1024
"""A fleet of so many devices is looked through as a whole before nobody is found."""

MISSES: Final = 8
"""So many times in a row nobody may be found before a round begins with fewer devices."""


class Chooser:
    """Draws device numbers.

    Args:
        devices: how many there are.
        may: whether a device can be had now.
        score: how much it is wanted; None: as much as the mean one.
        explore: the share of choices that look at nothing.
        rng: the only source of chance.
    """

    def __init__(
        self,
        devices: int,
        may: Callable[[int, float], bool],
        score: Callable[[int, float], float | None] | None,
        explore: float,
        rng: np.random.Generator,
    ) -> None:
        self._devices = devices
        self._may = may
        self._score = score
        self._explore = explore
        self._rng = rng
        self._drawn: list[int] = []
        self._mean = 0.0

    def one(self, now_s: float, besides: Collection[int] = ()) -> int | None:
        """Choose a device; None: nobody was found.

        Args:
            now_s: when.
            besides: who is not to be chosen.
        """
        found = self._candidates(now_s, besides)
        if not found:
            return None
        if self._score is None or len(found) == 1 or self._rng.random() < self._explore:
            return found[0]
        scores = [self._score(device, now_s) for device in found]
        known = [score for score in scores if score is not None]
        if known:
            mean = sum(known) / len(known)
            self._mean = self._mean + (mean - self._mean) / 16 if self._mean else mean
        best = [self._mean if score is None else score for score in scores]
        return found[best.index(max(best))]

    def some(self, count: int, now_s: float) -> list[int]:
        """Choose up to so many different devices; in a small fleet all that can be had."""
        found: dict[int, None] = {}
        misses = 0
        while len(found) < min(count, self._devices):
            device = self.one(now_s, found)
            if device is not None:
                found[device], misses = None, 0
                continue
            misses += 1
            if not found or misses == MISSES or self._devices <= SMALL:
                break
        return list(found)

    def _candidates(self, now_s: float, besides: Collection[int]) -> list[int]:
        wanted = 1 if self._score is None else min(DRAWN, self._devices)
        found: dict[int, None] = {}
        for _ in range(TRIES):
            device = self._next()
            if device not in besides and self._may(device, now_s):
                found[device] = None
                if len(found) == wanted:
                    break
        if found or self._devices > SMALL:
            return list(found)
        order = self._rng.permutation(self._devices).tolist()
        there = (d for d in order if d not in besides and self._may(d, now_s))
        return list(islice(there, wanted))

    def _next(self) -> int:
        if not self._drawn:
            self._drawn = self._rng.integers(0, self._devices, 1024).tolist()
        return self._drawn.pop()
