"""When a link is up and when it is down: a seeded schedule of windows. Pure.

Windows follow a two-state renewal process with exponential lengths (Gilbert's good and bad state
in continuous time). Every window that ends has its way of ending: cleanly for nobody.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Ending(Enum):
    """How an online window ends."""

    RESET = "both directions are cut at once"
    MUTE = "what comes down is swallowed first (PUBACKs are lost), then both are cut"


@dataclass(frozen=True, slots=True)
class Weather:
    """What a link is like.

    Attributes:
        online_s: mean length of an online window, in seconds.
        offline_s: mean length of an offline window, in seconds.
        delay_s: longest one-way delay; each piece of data waits uniformly up to this.
        mute_s: how long a MUTE ending swallows what comes down.
        mute_share: the share of windows that end so.
    """

    online_s: float = 2.5
    offline_s: float = 4.0
    delay_s: float = 0.15
    mute_s: float = 0.8
    mute_share: float = 0.6


@dataclass(frozen=True, slots=True)
class Window:
    """Up for `online_s`, ending as told, then down for `offline_s`."""

    online_s: float
    ending: Ending
    offline_s: float


def windows(weather: Weather, rng: random.Random) -> Iterator[Window]:
    """Windows without end."""
    while True:
        ending = Ending.MUTE if rng.random() < weather.mute_share else Ending.RESET
        yield Window(
            online_s=rng.expovariate(1.0 / weather.online_s),
            ending=ending,
            offline_s=rng.expovariate(1.0 / weather.offline_s),
        )
