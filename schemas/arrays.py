"""The positional MessagePack array with which a message begins, read within hard limits. Pure.

Refuses (WireError) whatever is no array, has another wire version, or does not fit its Struct;
nothing is allocated from a length that the bytes do not have.
"""

from typing import Final, TypeVar

import msgpack
import msgspec

from schemas.errors import WireError
from schemas.outcomes import Reason

WIRE: Final = 1
"""The wire version."""

_Array = TypeVar("_Array", bound=msgspec.Struct)


def unpacked(data: bytes, bound: int) -> tuple[list[object], int]:
    """The elements of the array at the start of `data`, at least one, and where it ends.

    It must fit into the first `bound` bytes.
    """
    unpacker = msgpack.Unpacker(
        read_size=64,
        max_buffer_size=bound,
        max_array_len=16,
        max_map_len=16,
        max_str_len=64,
        max_bin_len=64,
        max_ext_len=0,
    )
    try:
        unpacker.feed(data[:bound])
        raw = unpacker.unpack()
    except msgpack.OutOfData as exc:
        raise WireError(Reason.MALFORMED, "the bytes end inside the array") from exc
    except (ValueError, RecursionError, msgpack.UnpackException) as exc:
        raise WireError(Reason.MALFORMED, "not MessagePack within its bounds") from exc
    if not isinstance(raw, list) or not raw:
        raise WireError(Reason.MALFORMED, "not an array")
    return raw, unpacker.tell()


def ends_at(end: int, data: bytes) -> None:
    """Refuse what follows the array of a message that has nothing behind it."""
    if end != len(data):
        raise WireError(Reason.MALFORMED, f"{len(data) - end} bytes too many")


def of_this_wire(raw: list[object], kind: type[_Array]) -> _Array:
    """The elements of an array of this wire version, field by field."""
    if type(raw[0]) is not int or raw[0] != WIRE:
        raise WireError(Reason.UNKNOWN_WIRE, f"wire version {raw[0]!r}; this is {WIRE}")
    return converted(raw, kind)


def converted(raw: list[object], kind: type[_Array]) -> _Array:
    """The elements field by field; one out of its range is BAD_NUMBER."""
    try:
        return msgspec.convert(raw, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as exc:
        reason = Reason.BAD_NUMBER if "Expected `int` " in str(exc) else Reason.MALFORMED
        raise WireError(reason, str(exc)) from exc
