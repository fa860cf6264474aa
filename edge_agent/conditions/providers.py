"""Where readings come from on this device: a clock, the trainer, the user's own function."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

import msgspec

from edge_agent.conditions.linux import linux
from edge_agent.conditions.readings import Provider, Readings, first_known
from edge_agent.conditions.systemd import systemd
from schemas.errors import ConfigError

CLOCK_SINCE_S: Final = 1_735_689_600.0  # 2025-01-01T00:00:00Z
"""A clock that shows an earlier time was never set."""


_BOUNDS: Final = {
    "battery": (0.0, 1.0),
    "temperature_c": (-273.15, 10_000.0),
    "hour": (0.0, 24.0),
    "new_samples": (0, 1 << 62),
}
"""What a sensor may say; a percentage or NaN would pass for a full battery."""


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user's function may tell."""

    charging: bool | None = None
    battery: float | None = None
    unmetered: bool | None = None
    temperature_c: float | None = None
    hour: float | None = None
    new_samples: int | None = None


def clock(
    unix_s: Callable[[], float] = time.time,
    local: Callable[[float], time.struct_time] = time.localtime,
) -> Provider:
    """Tell the local hour; nothing when the clock was never set."""

    def look() -> Readings:
        now = unix_s()
        if now < CLOCK_SINCE_S:
            return Readings()
        there = local(now)
        return Readings(hour=there.tm_hour + there.tm_min / 60)

    return look


def samples_of(trainer: object) -> Provider:
    """Ask the trainer how many examples are new, if it can tell."""

    def look() -> Readings:
        count = getattr(trainer, "new_samples", None)
        return Readings(new_samples=int(count())) if callable(count) else Readings()

    return look


def told_by(function: Callable[[], Any]) -> Provider:
    """A user's function, which returns a mapping with some of the readings.

    Its provider raises ConfigError when it tells what is no reading, naming the key, and
    ValueError when a sensor says what cannot be.
    """

    def look() -> Readings:
        told = function()
        if isinstance(told, Readings):
            told = asdict(told)
        if not isinstance(told, Mapping):
            raise ConfigError("provider", f"told {type(told).__name__}, must tell a mapping")
        try:
            found = msgspec.convert(dict(told), _Told)
        except msgspec.ValidationError as exc:
            raise ConfigError("provider", f"told what is no reading: {exc}") from exc
        return _possible(Readings(**msgspec.structs.asdict(found)))

    return look


def _possible(now: Readings) -> Readings:
    """The same readings. Raises ValueError: one of them cannot be."""
    for name, (low, high) in _BOUNDS.items():
        value = getattr(now, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} is {value}, must be {low:g} to {high:g}")
    return now


def usual(trainer: object, function: Callable[[], Any] | None = None) -> Provider:
    """All that can be asked on this device, the user's function first."""
    asked = [told_by(function)] if function is not None else []
    return first_known([*asked, samples_of(trainer), linux, systemd, clock()])
