"""When a device can be had. Pure: a trace comes in as text."""

import csv
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Final, TypeAlias

from fedmq.simulator.virtual.draws import PHASE, chance
from fedmq.simulator.virtual.fleet import AvailabilityOptions
from schemas.errors import ConfigError

DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0

Spans: TypeAlias = tuple[tuple[float, float], ...]
"""(from, until) in seconds, in order, apart."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Of a fleet.

    Attributes:
        options: the table.
        seed: of the devices' mornings.
        spans: of a trace, by device.
    """

    options: AvailabilityOptions
    seed: int
    spans: Mapping[int, Spans] = field(default_factory=dict)

    def there(self, device: int, now_s: float) -> bool:
        """Whether a device can be had now."""
        match self.options.kind:
            case "always":
                return True
            case "diurnal":
                late = chance(self.seed, PHASE, device) * self.options.mornings * DAY_S
                return (now_s - late) % DAY_S < self.options.hours * HOUR_S
            case "trace":
                spans = self.spans.get(device, ())
                at = bisect_right(spans, (now_s, float("inf"))) - 1
                return at >= 0 and now_s < spans[at][1]


def read_trace(text: str, devices: int) -> dict[int, Spans]:
    """Read device,from_s,until_s with a header; spans that touch become one. Raises ConfigError."""
    found: dict[int, list[tuple[float, float]]] = {}
    rows = csv.reader(StringIO(text))
    if [name.strip() for name in next(rows, [])] != ["device", "from_s", "until_s"]:
        raise ConfigError("availability.trace", "must begin with the line device,from_s,until_s")
    for number, row in enumerate(rows, start=2):
        try:
            device, begin, end = int(row[0]), float(row[1]), float(row[2])
        except (ValueError, IndexError) as exc:
            raise ConfigError("availability.trace", f"line {number} is no span: {row}") from exc
        if not (0 <= device < devices and begin < end):
            remedy = f"line {number}: a device from 0 to {devices - 1}, and from_s before until_s"
            raise ConfigError("availability.trace", remedy)
        found.setdefault(device, []).append((begin, end))
    return {device: _joined(spans) for device, spans in found.items()}


def _joined(spans: list[tuple[float, float]]) -> Spans:
    joined: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if joined and begin <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return tuple(joined)
