"""What a device may send: bytes a message, bytes a day, or the name of a link. Pure.

    "222 B"                 no message is longer: the encoder fills it
    "20 kB/day"             so much goes up on the average, re-sends included; what a day of silence
                            has saved may follow at once
    "103 B, 20 kB/day"      both
    "nb-iot", "lora-dr5"    what that link carries at a time, and in a day

A message is what is published: header and payload, without MQTT's own bytes. Bytes a day are bytes
of PUBLISH packets, topic included. 1 kB is 1,000 bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Budget:
    """What may go up.

    Attributes:
        message_bytes: of one message at most; 0: no bound.
        day_bytes: in 24 hours, on the average; 0: no bound.
    """

    message_bytes: int = 0
    day_bytes: float = 0.0


UNBOUNDED: Final = Budget()

SHORT_HEADER_MAX: Final = 28
"""The most a short header takes, in bytes (docs/wire.md, section 3)."""

LEAST_MESSAGE: Final = 32
"""A message below this holds a header and no impulse."""

LINKS: Final[Mapping[str, Budget]] = MappingProxyType(
    {
        # operators count by the kilobyte (1NCE: 500 MB for ten years, some 137 kB a day)
        "nb-iot": Budget(1_000, 137_000.0),
        "nb-iot-deep": Budget(500, 20_000.0),
        "lte-m": Budget(4_000, 1_000_000.0),  # Orange Maker: 1 MB a day is fair
        # EU868, 1 % duty cycle: frames a day times their bytes (Semtech's air time)
        "lora-dr0": Budget(51, 15_800.0),
        "lora-dr1": Budget(51, 28_000.0),
        "lora-dr2": Budget(51, 63_000.0),
        "lora-dr3": Budget(115, 147_000.0),
        "lora-dr4": Budget(222, 292_000.0),
        "lora-dr5": Budget(222, 520_000.0),
    }
)
"""Links by name, as `fedmq soak` knows them too."""

_UNITS: Final = {"b": 1, "kb": 1_000, "kib": 1_024, "mb": 1_000_000, "mib": 1 << 20}
_TIMES: Final = {"": 0.0, "day": 1.0, "hour": 24.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)(?:\s*/\s*([a-z]+))?")


def read_uplink(text: str) -> Budget:
    """Read a budget; an empty text is no bound. Raises ConfigError naming `uplink`."""
    if text.strip() in LINKS:
        return LINKS[text.strip()]
    found = UNBOUNDED
    for part in filter(None, (part.strip() for part in text.split(","))):
        one = _read_part(part)
        if (found.message_bytes and one.message_bytes) or (found.day_bytes and one.day_bytes):
            raise ConfigError("uplink", f"{text!r} gives two bounds of one kind: leave one out")
        found = Budget(one.message_bytes or found.message_bytes, one.day_bytes or found.day_bytes)
    if 0 < found.message_bytes < LEAST_MESSAGE:
        raise ConfigError("uplink", f"{text!r} holds no update: give {LEAST_MESSAGE} B or more")
    return found


def _read_part(part: str) -> Budget:
    match = _PART.fullmatch(part)
    unit = _UNITS.get(match[2].lower()) if match else None
    days = _TIMES.get(match[3] or "") if match else None
    if match is None or unit is None or days is None:
        remedy = f'write "222 B", "20 kB/day" or one of {", ".join(sorted(LINKS))}'
        raise ConfigError("uplink", f"{part!r} is no budget: {remedy}")
    size = float(match[1]) * unit
    if not 1 <= size <= 1 << 31:
        raise ConfigError("uplink", f"{part!r} must lie between 1 B and 2 GiB")
    return Budget(day_bytes=size * days) if days else Budget(message_bytes=int(size))
