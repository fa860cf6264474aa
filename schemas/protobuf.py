"""Protobuf's wire format, as much of it as an ONNX file needs: read within bounds, and written.

A message is a run of fields: a key (number and kind of value), then the value. What a field means
is its reader's business. Refuses (ValueError) a field that the bytes do not hold, a key or a count
that a protobuf parser would cut down to another one, a key or a length in more bytes than it needs
(no writer makes one: it makes room for another format in the same bytes), and groups, which nobody
has written for years. Source: protobuf.dev/programming-guides/encoding. Pure.
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

VARINT: Final = 0
FIXED64: Final = 1
BYTES: Final = 2
FIXED32: Final = 5

Value: TypeAlias = int | memoryview
"""Of a VARINT the number as it stands, 0 to 2^64 - 1; of all others the bytes."""

_FIXED: Final = {FIXED64: 8, FIXED32: 4}
_KEY_MAX: Final = (1 << 32) - 1
_COUNT_MAX: Final = (1 << 64) - 1
_LONGEST: Final = 10


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Every field's number, kind and value, in order. Raises ValueError."""
    at, end = 0, len(message)
    while at < end:
        key, at = _shortest(message, at)
        number, kind = key >> 3, key & 7
        if not number or key > _KEY_MAX:
            msg = f"a field with the key {key} cannot be"
            raise ValueError(msg)
        if kind == VARINT:
            value, at = _count(message, at)
            yield number, kind, value
            continue
        if kind == BYTES:
            size, at = _shortest(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        else:
            msg = f"field {number} is of kind {kind}, which is not read"
            raise ValueError(msg)
        if size > end - at:
            msg = f"the bytes end within field {number}"
            raise ValueError(msg)
        yield number, kind, message[at : at + size]
        at += size


def _count(message: memoryview, at: int) -> tuple[int, int]:
    """The varint that begins here, and where it ends."""
    count = 0
    for place, byte in enumerate(message[at : at + _LONGEST]):
        count |= (byte & 0x7F) << 7 * place
        if byte <= 0x7F:
            if count > _COUNT_MAX:
                break
            return count, at + place + 1
    msg = "the bytes end within a count, or it has more than 64 bits"
    raise ValueError(msg)


def _shortest(message: memoryview, at: int) -> tuple[int, int]:
    """A count in as few bytes as it needs, and where it ends."""
    count, end = _count(message, at)
    if end - at > 1 and not message[end - 1]:
        msg = f"{count} is written in {end - at} bytes, more than it needs"
        raise ValueError(msg)
    return count, end


def varint(count: int) -> bytes:
    """A count from 0 to 2^64 - 1 in 1 to 10 bytes."""
    groups = bytearray()
    while count > 0x7F:
        groups.append(count & 0x7F | 0x80)
        count >>= 7
    return bytes([*groups, count])


def number(field: int, value: int) -> bytes:
    """A field with a count."""
    return varint(field << 3 | VARINT) + varint(value)


def head(field: int, size: int) -> bytes:
    """What stands before the `size` bytes of a text, of raw bytes or of an inner message."""
    return varint(field << 3 | BYTES) + varint(size)
