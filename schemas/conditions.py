"""When a device may train: what the task asks, and what the device's owner asks besides. Pure."""

from typing import Annotated

import msgspec


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[train.when]`: all of these must hold on a device before it trains.

    Attributes:
        charging: only on external power.
        battery_above: only with so much charge, as a share; 0: do not care.
        unmetered: only on a link that costs nothing by the byte.
        cooler_than_c: only below this temperature, in degrees Celsius; none: do not care.
        hours: only in these local hours, e.g. "22-6" or "0-5,13-14"; "" is always.
        new_samples: only with so many new examples since the last training.
    """

    charging: bool = False
    battery_above: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    unmetered: bool = False
    cooler_than_c: float | None = None
    hours: str = ""
    new_samples: Annotated[int, msgspec.Meta(ge=0)] = 0
