"""Counts in as few bytes as they need: LEB128, 7 bits a byte, the lowest first.

The highest bit of a byte says that another follows. At most 5 bytes, and the last is not 0 unless
it is the only one: every count has one spelling.
"""

from typing import Final

from schemas.errors import WireError
from schemas.outcomes import Reason

_LONGEST: Final = 5


def write(count: int) -> bytes:
    """1 to 5 bytes: a count below 2^35."""
    groups = bytearray()
    while count > 0x7F:
        groups.append(count & 0x7F | 0x80)
        count >>= 7
    return bytes([*groups, count])


def read(payload: memoryview, start: int) -> tuple[int, int]:
    """The count that begins at `start`, and where it ends. Raises WireError."""
    count = 0
    for place, byte in enumerate(payload[start : start + _LONGEST]):
        count |= (byte & 0x7F) << (7 * place)
        if byte <= 0x7F:
            if place and not byte:
                raise WireError(Reason.MALFORMED, "a count with a byte too many")
            return count, start + place + 1
    if len(payload) < start + _LONGEST:
        raise WireError(Reason.TRUNCATED, "the payload ends within a count")
    raise WireError(Reason.MALFORMED, f"a count of more than {_LONGEST} bytes")
