"""Devices on demand: what one is like follows from its number, and is made when it is needed.

A device that has never taken part costs nothing. One that has keeps what a real one keeps: its
spool's number, its residual, its battery, the model that it holds.
"""

from dataclasses import dataclass, field
from math import exp, inf, log, sqrt
from typing import Protocol, runtime_checkable

from edge_agent.allowance import Allowance
from fedmq.simulator.links import LinkModel
from fedmq.simulator.profiles import PROFILES
from fedmq.simulator.virtual.draws import BOOT, CLASSES, LINKS, LIVES, TRAITS, bits, chance, normal
from fedmq.simulator.virtual.energy import DAY_S, Battery, charged, full
from fedmq.simulator.virtual.fleet import FleetFile
from fedmq.simulator.virtual.learner import Learner
from schemas.errors import ConfigError
from schemas.names import Boot, DeviceId
from schemas.params import Params

UNMETERED: frozenset[str] = frozenset({"perfect", "wifi-bad"})
"""Links whose bytes cost no money."""


@runtime_checkable
class Labelled(Protocol):
    """A learner that can tell what a device knows most of."""

    def label_of(self, device: int) -> int:
        """The class that most of its examples are of."""
        ...


@dataclass(slots=True)
class Device:
    """What a device that has taken part is, and keeps.

    Attributes:
        number: from 0.
        name: in the log.
        life: which device of this number, from 0.
        leaves_s: when it leaves for ever.
        boot: of its spool.
        speed: local steps a second.
        link: what it sends over; `unmetered`: whether bytes cost nothing there.
        battery: its charge.
        busy: whether it trains or sends.
        seq: of its newest update: as many as it has made.
        rounds: how often it has trained.
        residual: what its codec has left behind.
        holds: the serial of the publication that it has; -1: none.
        version: the newest base that it has sent an update of; -1: none.
        allowance: what may go up.
        examples: of its newest round; `loss`, `seconds`: of that, too.
    """

    number: int
    name: DeviceId
    life: int
    leaves_s: float
    boot: Boot
    speed: float
    link: LinkModel
    unmetered: bool
    battery: Battery
    busy: bool = False
    seq: int = 0
    rounds: int = 0
    residual: Params | None = None
    holds: int = -1
    version: int = -1
    allowance: Allowance = field(default_factory=Allowance)
    examples: int | None = None
    loss: float | None = None
    seconds: float | None = None


class Population:
    """The fleet: devices by number, made when they first take part."""

    def __init__(self, fleet: FleetFile, learner: Learner) -> None:
        self.known: dict[int, Device] = {}
        self._fleet = fleet
        self._learner = learner
        self._leave_rate = fleet.availability.churn_per_day / DAY_S
        if fleet.compute.slow_classes and not isinstance(learner, Labelled):
            raise ConfigError("compute.slow_classes", "must be 0: this data has no classes")

    def at(self, number: int, now_s: float) -> Device:
        """The device that bears this number now, with the charge that it has now."""
        device = self.known[number] = self.seen(number, now_s)
        return device

    def seen(self, number: int, now_s: float) -> Device:
        """The same, only looked at: one that has never taken part is forgotten again."""
        device = self.present(number, now_s)
        if device is None:
            device = self._born(number, self.known.get(number), now_s)
        device.battery = charged(device.battery, self._fleet.energy, now_s)
        return device

    def present(self, number: int, now_s: float) -> Device | None:
        """The device, if it has taken part and has not left."""
        device = self.known.get(number)
        return None if device is None or now_s >= device.leaves_s else device

    def _born(self, number: int, before: Device | None, now_s: float) -> Device:
        life, leaves_s = (0, 0.0) if before is None else (before.life + 1, before.leaves_s)
        born_s, leaves_s = leaves_s, leaves_s + self._lifetime_s(number, life)
        while leaves_s <= now_s:
            life += 1
            born_s, leaves_s = leaves_s, leaves_s + self._lifetime_s(number, life)
        fleet, seed = self._fleet, self._fleet.seed
        link = self._link_of(number)
        return Device(
            number=number,
            name=DeviceId(f"d{number}"),
            life=life,
            leaves_s=leaves_s,
            boot=Boot(1 + bits(seed, BOOT, number, life) % 0xFFFF_FFFF),
            speed=self._speed_of(number),
            link=PROFILES[link],
            unmetered=link in UNMETERED,
            battery=full(fleet.energy, born_s),
        )

    def _lifetime_s(self, number: int, life: int) -> float:
        if not self._leave_rate:
            return inf
        return -log(chance(self._fleet.seed, LIVES, number, life)) / self._leave_rate

    def _speed_of(self, number: int) -> float:
        """Log-normal; a part of the spread hangs on the device's class."""
        compute, seed = self._fleet.compute, self._fleet.seed
        drawn, part = normal(seed, TRAITS, number), compute.slow_classes
        if part and isinstance(self._learner, Labelled):
            of_class = normal(seed, CLASSES, self._learner.label_of(number))
            drawn = part * of_class + sqrt(1.0 - part * part) * drawn
        return compute.steps_per_second * exp(compute.spread * drawn)

    def _link_of(self, number: int) -> str:
        links = self._fleet.links
        at = chance(self._fleet.seed, LINKS, number) * sum(links.values())
        for name, share in links.items():
            at -= share
            if at < 0:
                return name
        return next(reversed([name for name, share in links.items() if share]))
