"""Which fault comes when, and to whom: all of it told by a seed. Pure.

A fault is a kind, a place among those it can strike, how long it lasts and a number for whatever
else it must choose; so one seed gives one schedule, on every machine, for as long as one likes.
The means by which each is inflicted stand beside its name; what this machine lacks is left out
when it is struck, and told.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Place: TypeAlias = Literal["device", "bridge", "aggregator", "broker", "redis", "replica", "fleet"]

NEEDS_LINUX: Final = "RLIMIT_FSIZE of another process is for Linux"
NEEDS_FAKETIME: Final = "needs libfaketime, and the Valkey of the wheel"
NOT_HERE: Final = frozenset({NEEDS_LINUX, NEEDS_FAKETIME})
"""Why a fault can never be struck on a machine; other reasons pass."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One way in which things go wrong.

    Attributes:
        name: of the fault.
        places: what it can strike.
        weight: how often it is drawn, beside the others.
        longest_s: it lasts up to so long.
        means: how it is inflicted.
    """

    name: str
    places: tuple[Place, ...]
    weight: int
    longest_s: float
    means: str


KINDS: Final = (
    Kind("kill", ("device", "bridge", "aggregator"), 20, 1.5, "SIGKILL, started again after it"),
    Kind("kill", ("broker", "redis", "replica"), 9, 1.0, "SIGKILL; Redis goes on from its AOF"),
    Kind("freeze", ("device", "bridge", "aggregator"), 9, 4.0, "SIGSTOP, then SIGCONT"),
    Kind("freeze", ("broker", "redis", "replica"), 4, 2.0, "SIGSTOP, then SIGCONT"),
    Kind("restart", ("broker", "redis"), 4, 0.5, "SIGTERM: what it saves it has again"),
    Kind("wipe", ("broker",), 3, 0.5, "SIGKILL, and its files are deleted"),
    Kind("failover", ("redis",), 4, 0.3, "SIGKILL of the primary; the replica takes its place"),
    Kind("partition", ("device", "bridge", "aggregator"), 12, 3.0, "proxy holds both directions"),
    Kind("one_way", ("device", "bridge", "aggregator"), 8, 3.0, "proxy holds one direction"),
    Kind("reset", ("device", "bridge", "aggregator"), 6, 0.2, "proxy sends RST to both ends"),
    Kind("half_open", ("device", "bridge"), 5, 2.0, "proxy closes one end and tells nobody"),
    Kind("corrupt", ("device",), 6, 2.0, "proxy flips bits in what passes"),
    Kind("slow", ("device", "bridge"), 5, 4.0, "proxy lets 2 kB a second pass"),
    Kind("poison", ("fleet",), 6, 0.3, "bad updates of a rogue device: NaN, garbage, too large"),
    Kind("flood", ("bridge",), 3, 2.0, "SIGSTOP, and more messages than the broker keeps for it"),
    Kind("redis_full", ("redis",), 4, 3.0, "maxmemory below what it holds, noeviction"),
    Kind("disk_full", ("redis",), 2, 1.5, "RLIMIT_FSIZE: its AOF cannot grow (Linux)"),
    Kind("disk_full", ("device",), 3, 3.0, "RLIMIT_FSIZE: its spool cannot grow (Linux)"),
    Kind("clock", ("redis",), 3, 3.0, "libfaketime: up to an hour to and fro"),
    Kind("old_card", ("device",), 4, 0.5, "SIGKILL; the state directory as it was some time ago"),
    Kind("new_card", ("device",), 2, 0.5, "SIGKILL; the state directory is gone"),
    Kind("torn", ("device",), 3, 0.5, "SIGKILL; half a frame at the end of the spool's WAL"),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of a schedule.

    Attributes:
        number: its place in the schedule, from 0.
        after_s: the pause before it, in seconds.
        kind: the name of its kind.
        place: what it strikes; `which` of them, by number.
        lasts_s: how long.
        dice: for whatever else it must choose.
    """

    number: int
    after_s: float
    kind: str
    place: Place
    which: int
    lasts_s: float
    dice: int


def schedule(seed: int, *, per_minute: float, devices: int) -> Iterator[Fault]:
    """Faults without end; the mean of pause and duration together gives `per_minute`."""
    rng = random.Random(f"soak/{seed}")  # noqa: S311 - a seeded simulation
    pause_s = max(0.1, 60.0 / per_minute - _mean_s())
    places = {"device": devices, "bridge": 2, "aggregator": 2}
    weights = [kind.weight for kind in KINDS]
    number = 0
    while True:
        (kind,) = rng.choices(KINDS, weights)
        place = rng.choice(kind.places)
        yield Fault(
            number=number,
            after_s=round(rng.uniform(0.2, 1.8) * pause_s, 3),
            kind=kind.name,
            place=place,
            which=rng.randrange(places.get(place, 1)),
            lasts_s=round(rng.uniform(0.1, 1.0) * kind.longest_s, 3),
            dice=rng.getrandbits(32),
        )
        number += 1


def _mean_s() -> float:
    """How long a fault lasts on average."""
    total = sum(kind.weight for kind in KINDS)
    return sum(kind.weight * 0.55 * kind.longest_s for kind in KINDS) / total
