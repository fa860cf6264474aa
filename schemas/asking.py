"""Asking for one diff between two publications, and the answer. docs/wire.md, section 5.

    ask     [wire, epoch, first, last]
    reply   [wire, epoch, first, last], then the diff that leads from publication `first` to `last`

Both arrays are MessagePack, 5 to 15 bytes. The reader of either passes over elements behind these.
"""

from dataclasses import dataclass
from typing import Annotated, Final

import msgpack
import msgspec

from schemas.arrays import WIRE, ends_at, of_this_wire, unpacked
from schemas.errors import WireError
from schemas.names import Epoch
from schemas.outcomes import Reason

ASK_BYTES: Final = 256
"""Bytes in which an ask must fit, whatever a newer peer appends."""

_U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


class AskArray(msgspec.Struct, array_like=True):
    """A Question, field by field."""

    wire: int
    epoch: _U16
    first: _U32
    last: _U32


class ReplyArray(msgspec.Struct, array_like=True):
    """What a Reply begins with, field by field."""

    wire: int
    epoch: _U16
    first: _U32
    last: _U32


@dataclass(frozen=True, slots=True)
class Question:
    """A device wants one diff in place of several.

    Attributes:
        epoch: the task's epoch, as in the manifest.
        first: the serial number of the publication that the device has.
        last: that of the one which it wants: above `first`.
    """

    epoch: Epoch
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What it gets.

    Attributes:
        epoch: as it was asked, and so are the next two.
        first: the publication that the diff begins at.
        last: the one that it leads to.
        diff: as in a blob (docs/wire.md, section 5).
    """

    epoch: Epoch
    first: int
    last: int
    diff: bytes

    @property
    def asked(self) -> Question:
        """What this is the answer to."""
        return Question(self.epoch, self.first, self.last)


def encode_ask(ask: Question) -> bytes:
    """Write an ask."""
    packed: bytes = msgpack.packb([WIRE, ask.epoch, ask.first, ask.last])
    return packed


def decode_ask(data: bytes) -> Question:
    """Read an ask. Raises WireError."""
    ask, end = _read(data)
    ends_at(end, data)
    return ask


def encode_reply(reply: Reply) -> bytes:
    """Write a reply."""
    return encode_ask(reply.asked) + reply.diff


def decode_reply(data: bytes) -> Reply:
    """Read a reply. Raises WireError."""
    ask, end = _read(data)
    return Reply(ask.epoch, ask.first, ask.last, data[end:])


def _read(data: bytes) -> tuple[Question, int]:
    """Read the array at the start of `data`, and where it ends."""
    raw, end = unpacked(data, ASK_BYTES)
    array = of_this_wire(raw, AskArray)
    if array.first >= array.last:
        raise WireError(Reason.BAD_NUMBER, f"{array.first} is not before {array.last}")
    return Question(Epoch(array.epoch), array.first, array.last), end
