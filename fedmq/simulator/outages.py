"""When a link is up and when it is down: seeded outages. Pure.

Random outages are a two-state renewal process with exponential lengths (Gilbert's good and bad
state in continuous time), so it needs no memory: what comes next depends on now alone. Scheduled
ones lie over it. Every window that ends has its way of ending: cleanly for nobody.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from fedmq.simulator.ranges import not_negative, positive, share
from schemas.errors import ConfigError


class Ending(Enum):
    """How an online window ends."""

    RESET = "both directions are cut at once"
    MUTE = "what comes down is swallowed first (PUBACKs are lost), then both are cut"
    HALF_OPEN = "the broker's end is closed; the device is not told and hears nothing more"


@dataclass(frozen=True, slots=True)
class Outages:
    """When a link is down, and how it goes down. Times in seconds.

    Attributes:
        online_s: mean length of an online window; infinite means no random outages.
        offline_s: mean length of a random outage.
        scheduled: outages by the clock, (begin, end) each since the link began; in order, apart.
        mute_s: how long a MUTE ending swallows what comes down.
        mute_share: the share of windows that end so.
        half_open_share: the share of windows that end HALF_OPEN; what is left ends in a RESET.
    """

    online_s: float = math.inf
    offline_s: float = 0.0
    scheduled: tuple[tuple[float, float], ...] = ()
    mute_s: float = 0.8
    mute_share: float = 0.0
    half_open_share: float = 0.0

    def __post_init__(self) -> None:
        positive("outages.online_s", self.online_s)
        not_negative("outages.offline_s", self.offline_s)
        not_negative("outages.mute_s", self.mute_s)
        share("outages.mute_share", self.mute_share)
        share("outages.half_open_share", self.half_open_share)
        if self.mute_share + self.half_open_share > 1.0:
            remedy = "with mute_share it must not exceed 1: the rest are resets"
            raise ConfigError("outages.half_open_share", remedy)
        before = 0.0
        for begin, end in self.scheduled:
            if not before <= begin < end:
                raise ConfigError("outages.scheduled", "each must begin after the one before ends")
            before = end


@dataclass(frozen=True, slots=True)
class Outage:
    """Down from `start_s` until `end_s`, on the link's clock; `ending` is how it began."""

    start_s: float
    end_s: float
    ending: Ending


@dataclass(frozen=True, slots=True)
class Window:
    """Up for `online_s`, ending as told, then down for `offline_s`."""

    online_s: float
    ending: Ending
    offline_s: float


def next_outage(outages: Outages, after_s: float, rng: random.Random) -> Outage | None:
    """Return the outage that comes next for a link that is up at `after_s`; None: never again.

    A random one that a scheduled one forestalls is drawn anew afterwards: exponential times have
    no memory, so the law is the same.
    """
    ending = _ending(outages, rng)
    start = end = math.inf
    if outages.online_s < math.inf:
        start = after_s + _exponential(outages.online_s, rng)
        end = start + _exponential(outages.offline_s, rng)
    for begin, until in outages.scheduled:
        if until <= after_s:
            continue
        if begin > end:
            break
        if begin < start:
            start, end = max(begin, after_s), until
        else:
            end = max(end, until)
    return None if start == math.inf else Outage(start, end, ending)


def meanwhile(outages: Outages, up_s: float, now_s: float, rng: random.Random) -> Outage | None:
    """Return the outage that goes on at `now_s`, if any, of a link that was up at `up_s`.

    At one draw, however long ago that is: the transition probability of the two-state chain in
    continuous time. For random outages alone.
    """
    if outages.online_s == math.inf or outages.offline_s == 0.0:
        return None
    fails, mends = 1.0 / outages.online_s, 1.0 / outages.offline_s
    rate = fails + mends
    if rng.random() >= fails / rate * (1.0 - math.exp(-rate * (now_s - up_s))):
        return None
    return Outage(now_s, now_s + _exponential(outages.offline_s, rng), _ending(outages, rng))


def windows(outages: Outages, rng: random.Random) -> Iterator[Window]:
    """Yield windows as long as outages come: without end, where there are random ones."""
    now_s = 0.0
    while (outage := next_outage(outages, now_s, rng)) is not None:
        yield Window(outage.start_s - now_s, outage.ending, outage.end_s - outage.start_s)
        now_s = outage.end_s
        if now_s == math.inf:
            return


def _ending(outages: Outages, rng: random.Random) -> Ending:
    drawn = rng.random()
    if drawn < outages.mute_share:
        return Ending.MUTE
    if drawn < outages.mute_share + outages.half_open_share:
        return Ending.HALF_OPEN
    return Ending.RESET


def _exponential(mean_s: float, rng: random.Random) -> float:
    return rng.expovariate(1.0 / mean_s) if 0.0 < mean_s < math.inf else mean_s
