"""What a device is like now, and which conditions that does not meet. Pure.

What is not known is not met, and the sentence says what to do; a device without a clock leaves
`hours` out, because it could never keep them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TypeAlias

from schemas.conditions import Conditions, within_hours


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the device; None where nobody can tell.

    Attributes:
        charging: whether it is on external power.
        battery: its charge as a share, 0 to 1.
        unmetered: whether its link costs nothing by the byte.
        temperature_c: of its hottest part, in degrees Celsius.
        hour: local time, 0 to 24; None without a clock.
        new_samples: examples that have come since the last training.
    """

    charging: bool | None = None
    battery: float | None = None
    unmetered: bool | None = None
    temperature_c: float | None = None
    hour: float | None = None
    new_samples: int | None = None


Provider: TypeAlias = Callable[[], Readings]
"""Looks at the device. It may take a moment: it is called in a worker thread."""


def unmet(asked: Conditions, now: Readings) -> list[str]:
    """The conditions that do not hold, a sentence each; empty when the device may train."""
    return [sentence for sentence in _checked(asked, now) if sentence]


def _checked(asked: Conditions, now: Readings) -> Iterator[str]:
    if asked.charging:
        yield _truth(now.charging, "not charging", "charging")
    if asked.battery_above:
        above, charge = asked.battery_above, now.battery
        low = charge is not None and charge <= above
        yield _truth(None if charge is None else not low, _low(charge, above), "battery")
    if asked.unmetered:
        yield _truth(now.unmetered, "the link is metered", "unmetered")
    if asked.cooler_than_c is not None:
        bound, heat = asked.cooler_than_c, now.temperature_c
        cool = None if heat is None else heat < bound
        yield _truth(cool, f"{heat} °C, must be below {bound:g}", "temperature_c")
    if now.hour is not None and not within_hours(asked.hours, now.hour):
        yield f"{int(now.hour)} h is not within {asked.hours}"
    if asked.new_samples:
        wanted, count = asked.new_samples, now.new_samples
        enough = None if count is None else count >= wanted
        yield _truth(enough, f"{count} new samples, must be {wanted}", "new_samples")


def _low(charge: float | None, above: float) -> str:
    return f"battery at {charge or 0:.0%}, must be above {above:.0%}"


def _truth(holds: bool | None, otherwise: str, name: str) -> str:  # noqa: FBT001 - a reading
    if holds is None:
        return f"{name} is not known here: give a provider that tells it (--provider)"
    return "" if holds else otherwise


def first_known(providers: list[Provider]) -> Provider:
    """One provider out of several: the first that knows a reading tells it."""

    def look() -> Readings:
        found: dict[str, object] = {}
        for provider in providers:
            now = provider()
            for each in fields(Readings):
                value = getattr(now, each.name)
                if value is not None:
                    found.setdefault(each.name, value)
        return Readings(**found)  # type: ignore[arg-type] # every value came from a Readings

    return look
