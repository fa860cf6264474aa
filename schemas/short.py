"""The short headers of an update: for links that are paid by the byte. docs/wire.md, section 3.

    short    02 | epoch | boot, 4 bytes | seq | base_version | base_digest, 4 bytes | codec, 1 byte
                | num_examples | payload
    frame    03 | boot, 4 bytes | seq | a frame as it came over the air:
                codec, 1 byte | base_version mod 2^16, 2 bytes | epoch and examples, 1 byte
                | payload

Big-endian; what has no size is a varint (`schemas.codecs.varint`). In a frame one byte holds the
epoch's lowest 4 bits and, below them, the binary logarithm of num_examples, rounded up. Neither
form tells metrics, contributions or the tensors' digest: the base's digest covers that.

Refuses (WireError) what is out of range or ends within a header; reads no more than that.
"""

from typing import Final

from schemas.codecs import varint
from schemas.errors import InvariantError, WireError
from schemas.messages import ModelUpdate
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.outcomes import Reason

SHORT: Final = b"\x02"
"""What an update with a short header begins with: no MessagePack array does."""

FRAME: Final = b"\x03"
"""What a radio's frame begins with, once its network server's adapter has said whose it is."""

AIR_BYTES: Final = 4
"""Of a frame over the air, before the payload."""

FRAME_EPOCHS: Final = 16
"""A frame tells so many epochs apart."""

FRAME_VERSIONS: Final = 1 << 16
"""And so many versions: no base is older (strategy.max_staleness)."""

_U32: Final = 0xFFFF_FFFF
_RANGES: Final = {
    "epoch": (0, 0xFFFF),
    "boot": (1, _U32),
    "seq": (1, _U32),
    "base_version": (0, _U32),
    "base_digest": (0, _U32),
    "codec": (0, 127),
    "num_examples": (1, _U32),
}


def short_header(update: ModelUpdate) -> bytes:
    """All of an update but its payload, in 14 to 28 bytes.

    Raises:
        InvariantError: it tells what a short header cannot, or not what it must.
    """
    if update.base_digest is None or update.metrics or _is_merged(update):
        msg = "a short header has a base's digest, no metrics and one contribution"
        raise InvariantError(msg)
    return b"".join(
        (
            SHORT,
            varint.write(update.epoch),
            update.boot.to_bytes(4, "big"),
            varint.write(update.seq),
            varint.write(update.base_version),
            update.base_digest.to_bytes(4, "big"),
            bytes([update.codec]),
            varint.write(update.num_examples),
        )
    )


def read_short(data: bytes) -> ModelUpdate:
    """Read an update whose first byte is SHORT. Raises WireError."""
    head = memoryview(data)
    epoch, at = _count(head, 1, "epoch")
    boot, at = _number(head, at, 4, "boot")
    seq, at = _count(head, at, "seq")
    version, at = _count(head, at, "base_version")
    digest, at = _number(head, at, 4, "base_digest")
    codec, at = _number(head, at, 1, "codec")
    examples, at = _count(head, at, "num_examples")
    return ModelUpdate(
        epoch=Epoch(epoch),
        boot=Boot(boot),
        seq=Seq(seq),
        base_version=ModelVersion(version),
        base_digest=digest,
        spec_digest=None,
        codec=codec,
        num_examples=examples,
        payload=head[at:],
    )


def over_the_air(update: ModelUpdate) -> bytes:
    """The frame that a radio sends of an update: 4 bytes and the payload.

    More than 2^15 examples are told as 2^15. Raises InvariantError when it cannot be told so.
    """
    return _air_header(update) + bytes(update.payload)


def told_base(frame: bytes) -> tuple[int, int]:
    """What a frame tells of its base: epoch modulo 16, version modulo 2^16. Raises WireError."""
    head = memoryview(frame)
    version, at = _number(head, 1, 2, "base_version")
    both, _ = _number(head, at, 1, "epoch")
    return both >> 4, version


def carried(boot: Boot, seq: Seq, frame: bytes) -> bytes:
    """The update that an adapter makes of a frame: whose it is, and the frame as it came."""
    return b"".join((FRAME, boot.to_bytes(4, "big"), varint.write(seq), frame))


def frame_header(update: ModelUpdate) -> bytes:
    """All of a carried frame but its payload. Raises InvariantError when it cannot be told so."""
    return carried(update.boot, update.seq, _air_header(update))


def read_frame(data: bytes) -> ModelUpdate:
    """Read an update whose first byte is FRAME: a partial one. Raises WireError."""
    head = memoryview(data)
    boot, at = _number(head, 1, 4, "boot")
    seq, at = _count(head, at, "seq")
    codec, at = _number(head, at, 1, "codec")
    version, at = _number(head, at, 2, "base_version")
    both, at = _number(head, at, 1, "epoch")
    return ModelUpdate(
        epoch=Epoch(both >> 4),
        boot=Boot(boot),
        seq=Seq(seq),
        base_version=ModelVersion(version),
        base_digest=None,
        spec_digest=None,
        codec=codec,
        num_examples=1 << (both & 15),
        payload=head[at:],
        partial=True,
    )


def _air_header(update: ModelUpdate) -> bytes:
    if update.metrics or _is_merged(update):
        msg = "a frame has no metrics and one contribution"
        raise InvariantError(msg)
    examples = min((update.num_examples - 1).bit_length(), 15)
    version = (update.base_version & 0xFFFF).to_bytes(2, "big")
    return bytes([update.codec]) + version + bytes([(update.epoch & 15) << 4 | examples])


def _is_merged(update: ModelUpdate) -> bool:
    return update.contributions != 1 or update.weight != 1.0


def _number(head: memoryview, at: int, size: int, name: str) -> tuple[int, int]:
    """A big-endian number of so many bytes, and where it ends."""
    if len(head) < at + size:
        raise WireError(Reason.TRUNCATED, f"the header ends within {name}")
    return _within(name, int.from_bytes(head[at : at + size], "big")), at + size


def _count(head: memoryview, at: int, name: str) -> tuple[int, int]:
    """A varint, and where it ends."""
    value, end = varint.read(head, at)
    return _within(name, value), end


def _within(name: str, value: int) -> int:
    least, most = _RANGES[name]
    if not least <= value <= most:
        raise WireError(Reason.BAD_NUMBER, f"{name} {value} is not within {least} .. {most}")
    return value
