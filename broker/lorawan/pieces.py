"""How a model travels in a radio's frames: stop and wait, and what was got is told for 0 bytes.

A device is sent one transfer at a time: a head, and a lattice diff or keyframe. It is cut into
pieces that fit the windows, appended one to the other; a piece goes down until the next uplink says
that it is there. Both ways FPort tells the two numbers that this takes:

    FPort = 1 + 2 * (count mod 111) + turn

    down    count: the number of this piece, from 0;     turn: of its transfer
    up      count: how many pieces of it are there;      turn: of the transfer they belong to

A new transfer has the other turn. So a piece of one is never taken for one of another, also when
the adapter has forgotten what it did. Nothing is lost by counting modulo 111: the next number is
one of two. A finished or abandoned transfer counts 0 pieces.

The head, 11 bytes, big-endian; it stands before the diff in piece 0:

    from mod 2^16, 2 | to mod 2^16, 2 | epoch mod 16 << 4 | what, 1 | length, 2 | digest, 4

`from` and `to` are versions; what is 0 for a diff from that version, 1 for a keyframe, which needs
only the initial model. `length` is of what follows the head, `digest` the model's after it.

Refuses (WireError) a head that is none; an `Assembly` passes over it. Pure.
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

from schemas.errors import InvariantError, WireError
from schemas.outcomes import Reason

RING: Final = 111
"""Counts that fit into the 223 ports of applications, with a turn each."""

HEAD_BYTES: Final = 11
"""Of a head."""

_HEAD: Final = Struct(">HHBH4s")

LENGTH_MAX: Final = 0xFFFF
"""What a transfer carries at most: at DR0 that is 1,286 windows."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a transfer leads from and to.

    Attributes:
        first: the version that the diff begins at, modulo 2^16.
        last: the version that it leads to, modulo 2^16.
        epoch: of both, modulo 16.
        whole: whether it is a keyframe: `first` means nothing then.
        length: bytes that follow the head.
        digest: the first 4 bytes of the digest of the model that comes out.
    """

    first: int
    last: int
    epoch: int
    whole: bool
    length: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Arrived:
    """A transfer that is complete: its head, and the diff or keyframe."""

    head: Head
    data: bytes


def port_of(count: int, turn: int) -> int:
    """The FPort that says this."""
    return 1 + 2 * (count % RING) + (turn & 1)


def read_port(port: int) -> tuple[int, int] | None:
    """Read (count mod RING, turn); None for a port that says nothing."""
    return divmod(port - 1, 2) if 1 <= port <= 2 * RING else None


def encode_head(head: Head) -> bytes:
    """Write a head. Raises InvariantError for what has no room in one."""
    if not 0 < head.length <= LENGTH_MAX or len(head.digest) != 4:
        msg = f"a head tells no {head.length} bytes with a digest of {len(head.digest)}"
        raise InvariantError(msg)
    both = (head.epoch & 15) << 4 | int(head.whole)
    return _HEAD.pack(head.first & 0xFFFF, head.last & 0xFFFF, both, head.length, head.digest)


def read_head(data: bytes) -> Head:
    """Read the head that `data` begins with. Raises WireError."""
    if len(data) < HEAD_BYTES:
        raise WireError(Reason.TRUNCATED, "the head of a transfer is missing")
    first, last, both, length, digest = _HEAD.unpack_from(data)
    if not length or both & 14:
        raise WireError(Reason.BAD_NUMBER, f"no transfer has {length} bytes and marks {both}")
    return Head(first, last, both >> 4, bool(both & 1), length, digest)


class Assembly:
    """The device's end: what it has of a transfer, and what its uplinks must say of it."""

    __slots__ = ("_buffer", "_count", "_turn")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._count = 0
        self._turn = 0

    @property
    def port(self) -> int:
        """The FPort of the next uplink."""
        return port_of(self._count, self._turn)

    @property
    def pieces(self) -> int:
        """How many are there."""
        return self._count

    def receive(self, port: int, data: bytes) -> Arrived | None:
        """Take a downlink; the transfer, when this was its last piece.

        The transfer is put away then: what comes out of it is another version, or, when it does
        not fit, nothing.
        """
        said = read_port(port)
        if said is None or not data:
            return None
        count, turn = said
        if turn != self._turn:
            if count or not _begins(data):
                return None
            self._buffer, self._count, self._turn = bytearray(), 0, turn
        elif not self._count or count != self._count % RING:
            return None
        self._buffer += data
        self._count += 1
        head = read_head(bytes(self._buffer[:HEAD_BYTES]))
        if len(self._buffer) < HEAD_BYTES + head.length:
            return None
        body = bytes(self._buffer[HEAD_BYTES : HEAD_BYTES + head.length])
        self.abandon()
        return Arrived(head, body)

    def abandon(self) -> None:
        """Forget the pieces; the adapter begins anew."""
        self._buffer, self._count = bytearray(), 0


def _begins(data: bytes) -> bool:
    """Whether this is a first piece."""
    try:
        read_head(data)
    except WireError:
        return False
    return True
