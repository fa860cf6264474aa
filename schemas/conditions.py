"""When a device may train: what the task asks, or what the device's owner asks besides. Pure."""

from typing import Annotated

import msgspec


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[train.when]`: all of these must hold on a device before it trains.

    Attributes:
        charging: only on external power.
        battery_above: only with more charge than this share; 0: do not care.
        unmetered: only on a link that costs nothing by the byte.
        cooler_than_c: only below this temperature, in degrees Celsius; null: do not care.
        hours: only in these local hours, "22-6" or "0-5,13-14"; "" is always.
        new_samples: only with so many new examples since the last training; 0: do not care.
    """

    charging: bool = False
    battery_above: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    unmetered: bool = False
    cooler_than_c: Annotated[float, msgspec.Meta(ge=-100, le=1000)] | None = None
    hours: Annotated[str, msgspec.Meta(max_length=64)] = ""
    new_samples: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0

    def __post_init__(self) -> None:
        """Refuse hours that cannot be read (ValueError)."""
        spans_of(self.hours)


def spans_of(hours: str) -> tuple[tuple[int, int], ...]:
    """Read `22-6,13-14` as ((22, 6), (13, 14)). Raises ValueError."""
    return tuple(_span(part.strip()) for part in hours.split(",")) if hours.strip() else ()


def _span(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (dash and first.strip().isdecimal() and last.strip().isdecimal()):
        raise ValueError(f'hours: {text!r} must be FROM-TO in whole hours, as in "22-6"')
    start, end = int(first), int(last)
    if start > 23 or end > 24 or start == end:
        raise ValueError(f"hours: {text!r} must lie within 0-24, and begin before or after its end")
    return start, end


def within_hours(hours: str, hour: float) -> bool:
    """Tell whether a local hour, 0 to 24, lies in the spans; they may pass midnight."""
    spans = spans_of(hours)
    return not spans or any(
        start <= hour < end if start < end else hour >= start or hour < end for start, end in spans
    )
