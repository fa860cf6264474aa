"""A message of a live sensor topic as numbers: a JSON object of fields, or a bare number. Pure."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, Final

import msgspec

PAYLOAD_MAX: Final = 1 << 16
"""Bytes of a message, at most."""

BARE: Final = "value"
"""The field that a bare number is."""

FIELDS_MAX: Final = 4096

FLOAT32_MAX: Final = (2 - 2**-23) * 2.0**127


def decode_reading(payload: bytes) -> Mapping[str, float]:
    """The finite numbers of a message, by field; truth values are 0 and 1.

    Raises:
        ValueError: it is too large, or neither a JSON object nor a number.
    """
    if len(payload) > PAYLOAD_MAX:
        raise ValueError(f"{len(payload)} bytes are more than {PAYLOAD_MAX}")
    try:
        told: Any = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ValueError(f"no JSON: {exc}") from exc
    fields = told if isinstance(told, dict) else {BARE: told}
    if len(fields) > FIELDS_MAX:
        raise ValueError(f"{len(fields)} fields are more than {FIELDS_MAX}")
    found = {name: number for name, each in fields.items() if (number := _number(each)) is not None}
    if not found:
        raise ValueError("it holds no finite number: send 1.5, or an object of them")
    return found


def _number(value: object) -> float | None:
    if not isinstance(value, int | float):  # a bool is an int
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if isfinite(number) else None


def picked(reading: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """The named fields. Raises ValueError: one is missing, no number, or beyond float32."""
    for name in names:
        if name not in reading:
            raise ValueError(f"it has no number {name!r}")
        if abs(reading[name]) > FLOAT32_MAX:
            raise ValueError(f"its {name!r} is {reading[name]:g}, which float32 cannot hold")
    return [reading[name] for name in names]
