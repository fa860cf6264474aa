"""What a battery holds, worked out only when somebody looks. Pure."""

from dataclasses import dataclass, replace
from math import inf
from typing import Final

from fedmq.simulator.virtual.fleet import EnergyOptions

DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class Battery:
    """A device's charge.

    Attributes:
        joules: in it; infinite on the mains.
        at_s: when that was.
    """

    joules: float = inf
    at_s: float = 0.0


def full(options: EnergyOptions, now_s: float) -> Battery:
    """What a device begins with."""
    return Battery(options.battery_j or inf, now_s)


def charged(battery: Battery, options: EnergyOptions, now_s: float) -> Battery:
    """The same battery, later: with what has flown in during charging hours."""
    if battery.joules == inf or now_s <= battery.at_s:
        return battery
    gained = charging_s(options, battery.at_s, now_s) * options.charge_w
    return Battery(min(options.battery_j, battery.joules + gained), now_s)


def drained(battery: Battery, joules: float) -> Battery:
    """What is left; never below nothing."""
    return replace(battery, joules=max(0.0, battery.joules - joules))


def charge_of(battery: Battery, options: EnergyOptions) -> float | None:
    """As a share of a full one; None on the mains."""
    return None if battery.joules == inf else battery.joules / options.battery_j


def charging_s(options: EnergyOptions, since_s: float, until_s: float) -> float:
    """Seconds of charging between two moments."""
    return _charged_by(options, until_s) - _charged_by(options, since_s)


def _charged_by(options: EnergyOptions, now_s: float) -> float:
    """Seconds of charging until now, counted from a day's beginning of it."""
    daily = options.charge_hours * HOUR_S
    days, rest = divmod(now_s - options.charge_from_h * HOUR_S, DAY_S)
    return days * daily + min(rest, daily)
