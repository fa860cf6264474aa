"""Who trains and uploads when, and what becomes of it on the way: drawn once, before anything runs.

How long a device trains depends on nothing that a codec does, so all contenders of a seed live
through the same order of events, with the same losses. Pure.
"""

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, Literal, TypeAlias

import numpy as np

SPREAD: Final = 0.5
"""Of the devices' speeds: standard deviation of the logarithm."""

JITTER: Final = 0.25
"""Of one device's rounds, likewise."""

Fault: TypeAlias = Literal["none", "lost", "doubled", "late", "stale"]


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to a share of the updates.

    Attributes:
        kind: `lost` on the way; `doubled`: folded again up to 20 uploads later, as if nobody
            had noticed (the product's windows do notice); `late` by up to 40 uploads, beyond the
            same device's next ones; `stale` by 100 to 300 uploads, 20 to 60 versions at K = 5.
        share: of the updates that it happens to.
    """

    kind: Fault = "none"
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something happens to an upload.

    Attributes:
        kind: `begin` (the newest model is fetched), `send`, or `arrive` (maybe never or twice).
        number: of the upload, from 0 in the order of sending.
        device: whose it is.
    """

    kind: Literal["begin", "send", "arrive"]
    number: int
    device: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """All events in their order, and which uploads never arrive."""

    events: tuple[Event, ...]
    lost: frozenset[int]


def drawn(
    devices: int, uploads: int, faults: Faults, rng: np.random.Generator, *, awake: float = 1.0
) -> Timeline:
    """Draw a timeline of so many uploads.

    Args:
        devices: how many take part.
        uploads: sent in all, by whoever is ready.
        faults: what happens to some of them.
        rng: the only source of chance.
        awake: the share of a device's round between fetching a model and sending an update; the
            rest it sleeps.
    """
    pace = np.exp(rng.normal(0, SPREAD, devices))
    waiting = [(pace[d] * float(rng.random()), d) for d in range(devices)]  # phases differ
    flights: list[tuple[float, float, int]] = []
    heap: list[tuple[float, int, float]] = []
    for since, device in waiting:
        heappush(heap, (since + _round(pace[device], rng), device, since))
    while len(flights) < uploads:
        sent, device, since = heappop(heap)
        flights.append((sent - awake * (sent - since), sent, device))
        heappush(heap, (sent + _round(pace[device], rng), device, sent))
    between = (flights[-1][1] - flights[0][1]) / uploads
    return _events(flights, between, faults, rng)


def _round(pace: float, rng: np.random.Generator) -> float:
    return float(pace * np.exp(rng.normal(0, JITTER)))


def _events(
    flights: list[tuple[float, float, int]],
    between: float,
    faults: Faults,
    rng: np.random.Generator,
) -> Timeline:
    struck = rng.random(len(flights)) < faults.share
    delays = rng.random(len(flights))
    timed: list[tuple[float, int, int, Event]] = []
    lost = set()
    for number, (begin, sent, device) in enumerate(flights):
        # at one and the same moment: sent, arrived, and only then begun anew
        timed.append((begin, 2, number, Event("begin", number, device)))
        timed.append((sent, 0, number, Event("send", number, device)))
        kind = faults.kind if struck[number] else "none"
        arrivals = {
            "none": [sent],
            "lost": [],
            "doubled": [sent, sent + 20 * delays[number] * between],
            "late": [sent + 40 * delays[number] * between],
            "stale": [sent + (100 + 200 * delays[number]) * between],
        }[kind]
        timed += [(at, 1, number, Event("arrive", number, device)) for at in arrivals]
        if not arrivals:
            lost.add(number)
    timed.sort(key=lambda entry: entry[:3])
    return Timeline(tuple(entry[3] for entry in timed), frozenset(lost))
