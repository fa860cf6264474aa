"""The bytes of one update, read again from docs/wire.md (sections 2, 3 and 14).

What a device sends may be anything: `Refused` says by which name it is refused. Where that page and
the server differ, the server's way is taken, so that the fold is checked and not the page: a
`weight` that is not 1 is `bad_number`, NaN too; integers pass for floats; nil is passed over.
"""

from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

import msgpack

HEAD_MAX: Final = 1024
_CRC: Final = 4
_U7, _U16, _U32 = 127, 0xFFFF, 0xFFFF_FFFF
_NUMBERS: Final = (
    (0, _U16),  # epoch
    (1, _U32),  # boot
    (1, _U32),  # seq
    (0, _U32),  # base_version
    (0, _U32),  # base_digest
    (0, _U16),  # spec_digest
    (0, _U7),  # codec
    (1, _U32),  # num_examples
    (1, _U32),  # contributions
)
"""The ranges of the elements after the wire version, in their order."""


class Refused(Exception):  # noqa: N818 - a verdict, not an error
    """The update is not taken; `name` is the reason as docs/wire.md names it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


@dataclass(frozen=True, slots=True)
class Update:
    """One update: what its header tells, and its payload.

    `partial`: of epoch and base_version only the lowest 4 and 16 bits are told.
    """

    epoch: int
    boot: int
    seq: int
    base_version: int
    base_digest: int | None
    spec_digest: int | None
    codec: int
    num_examples: int
    contributions: int
    weight: float
    metrics: tuple[float, ...]
    payload: bytes
    partial: bool = False


def without_seal(device: str, message: bytes) -> bytes | None:
    """The message before its CRC-32; None where there is no right one."""
    body, seal = message[:-_CRC], message[-_CRC:]
    right = crc32(device.encode("ascii") + body).to_bytes(_CRC, "big")
    return body if body and seal == right else None


def read_update(message: bytes) -> Update:
    """Read header and payload, in whichever of three forms. Raises Refused."""
    match message[:1]:
        case b"\x02":
            return _short(message)
        case b"\x03":
            return _frame(message)
    array, end = _array(message)
    start = end + -end % 4
    if len(message) < start:
        raise Refused("truncated")
    if message[end:start].strip(b"\0"):
        raise Refused("malformed")
    contributions, weight, metrics = [*array, *(1, 1.0, {})[max(0, len(array) - 9) :]][9:12]
    values = tuple(map(float, metrics.values()))
    every = [*array[1:9], contributions, float(weight), values, message[start:]]
    return Update(*every)


def _short(message: bytes) -> Update:
    """02, epoch, boot (4), seq, base_version, base_digest (4), codec (1), num_examples."""
    epoch, at = _varint(message, 1, 0, _U16)
    boot, at = _fixed(message, at, 4, 1, _U32)
    seq, at = _varint(message, at, 1, _U32)
    base, at = _varint(message, at, 0, _U32)
    digest, at = _fixed(message, at, 4, 0, _U32)
    codec, at = _fixed(message, at, 1, 0, _U7)
    examples, at = _varint(message, at, 1, _U32)
    told = (epoch, boot, seq, base, digest, None, codec, examples)
    return Update(*told, 1, 1.0, (), message[at:])


def _frame(message: bytes) -> Update:
    """03, boot (4), seq, then the frame: codec (1), base_version (2), epoch and examples (1)."""
    boot, at = _fixed(message, 1, 4, 1, _U32)
    seq, at = _varint(message, at, 1, _U32)
    codec, at = _fixed(message, at, 1, 0, _U7)
    base, at = _fixed(message, at, 2, 0, _U16)
    both, at = _fixed(message, at, 1, 0, 255)
    told = (both // 16, boot, seq, base, None, None, codec, 2 ** (both % 16))
    return Update(*told, 1, 1.0, (), message[at:], partial=True)


def _fixed(message: bytes, at: int, size: int, least: int, most: int) -> tuple[int, int]:
    """A number of so many bytes, the highest first, and where it ends."""
    if at + size > len(message):
        raise Refused("truncated")
    return _ranged(int.from_bytes(message[at : at + size], "big"), least, most), at + size


def _varint(message: bytes, at: int, least: int, most: int) -> tuple[int, int]:
    value, at = read_count(message, at)
    return _ranged(value, least, most), at


def read_count(message: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends: 7 bits a byte, the lowest first, at most 5, no more than needed.

    Raises Refused.
    """
    value = 0
    for place in range(5):
        if at + place >= len(message):
            raise Refused("truncated")
        byte = message[at + place]
        value += byte % 128 << 7 * place
        if byte < 128:
            if byte == 0 and place > 0:
                raise Refused("malformed")
            return value, at + place + 1
    raise Refused("malformed")


def _ranged(value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise Refused("bad_number")
    return value


def _array(message: bytes) -> tuple[list[Any], int]:
    """The array that the message begins with, checked, and where it ends."""
    unpacker = msgpack.Unpacker(
        max_buffer_size=HEAD_MAX,
        max_array_len=16,
        max_map_len=16,
        max_str_len=64,
        max_bin_len=64,
        max_ext_len=0,
    )
    unpacker.feed(message[:HEAD_MAX])
    try:
        array = unpacker.unpack()
    except (msgpack.UnpackException, ValueError, RecursionError) as exc:
        raise Refused("malformed") from exc
    if not isinstance(array, list) or not array:
        raise Refused("malformed")
    if type(array[0]) is not int or array[0] != 1:
        raise Refused("unknown_wire")
    if len(array) < 9:
        raise Refused("malformed")
    for value, (least, most) in zip(array[1:10], _NUMBERS, strict=False):
        if type(value) is not int:
            raise Refused("malformed")
        if not least <= value <= most:
            raise Refused("bad_number")
    if len(array) > 10 and not _is_number(array[10]):
        raise Refused("malformed")
    if len(array) > 11 and not _are_metrics(array[11]):
        raise Refused("malformed")
    return array, unpacker.tell()


def _is_number(value: object) -> bool:
    return type(value) in {int, float}


def _are_metrics(found: object) -> bool:
    return isinstance(found, dict) and all(
        isinstance(name, str) and 1 <= len(name) <= 32 and _is_number(value)
        for name, value in found.items()
    )
