"""Wire v1: one message <-> its bytes. docs/wire.md is the same in prose, with vectors.

Every message is a positional MessagePack array whose first element is the wire version, but for
the short headers of updates (`schemas.short`). Refuses (WireError, with its reason) whatever is
malformed, out of range or longer than its bound; nothing is allocated from a length that the bytes
do not have.
"""

from typing import Annotated, Final, TypeVar

import msgpack
import msgspec

from schemas.arrays import WIRE, converted, ends_at, of_this_wire, unpacked
from schemas.errors import WireError
from schemas.ladder import keyframe_name
from schemas.lattice import KEYFRAME
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import Boot, Epoch, ModelVersion, Seq, is_name
from schemas.outcomes import Reason
from schemas.short import FRAME, SHORT, frame_header, read_frame, read_short, short_header

SHORT_MANIFEST: Final = 2
"""What the short form of a manifest has in the place of the wire version."""

HEADER_MAX: Final = 34
"""The most an update's long header takes without metrics, in bytes."""

_HEAD_BOUND: Final = 1024
"""Bytes in which any header or small message must fit, metrics included."""

_U8 = Annotated[int, msgspec.Meta(ge=0, le=127)]
METRICS_MAX: Final = 16
"""Metrics that an update may carry (docs/wire.md, section 3)."""

_U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
_POSITIVE = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF_FFFF)]
_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_BlobBytes = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
_ChunkBytes = Annotated[int, msgspec.Meta(ge=64, le=1 << 20)]
_Metrics = Annotated[
    dict[Annotated[str, msgspec.Meta(min_length=1, max_length=32)], float],
    msgspec.Meta(max_length=METRICS_MAX),
]


class UpdateArray(msgspec.Struct, array_like=True):
    """The header of a ModelUpdate, field by field; what it means stands there."""

    wire: int
    epoch: _U16
    boot: _POSITIVE
    seq: _POSITIVE
    base_version: _U32
    base_digest: _U32
    spec_digest: _U16
    codec: _U8
    num_examples: _POSITIVE
    contributions: _POSITIVE = 1
    weight: Annotated[float, msgspec.Meta()] = 1.0
    metrics: _Metrics = {}


class ManifestArray(msgspec.Struct, array_like=True):
    """A Manifest, field by field."""

    wire: int
    epoch: _U16
    version: _U32
    model_digest: _Digest
    spec_digest: _Digest
    codec: _U8
    blob: str
    blob_digest: _Digest
    blob_bytes: _BlobBytes
    chunk_bytes: _ChunkBytes


class ShortManifestArray(msgspec.Struct, array_like=True):
    """A Manifest of a task with a lattice, field by field."""

    form: int
    epoch: _U16
    version: _U32
    model_digest: Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
    spec_digest: _U16
    codec: Annotated[int, msgspec.Meta(ge=KEYFRAME, le=KEYFRAME)]
    serial: _U32
    oldest: _U32
    blob_bytes: _BlobBytes
    chunk_bytes: _ChunkBytes
    origin: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{8})?\Z")]
    ladder: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0, le=1 << 31)], ...], msgspec.Meta(max_length=16)
    ]


class ReceiptArray(msgspec.Struct, array_like=True):
    """A Receipt, field by field; `settled` is an uint64, checked apart."""

    wire: int
    epoch: _U16
    boot: _U32
    low: _U32
    settled: int
    seq: _U32
    outcome: Annotated[int, msgspec.Meta(ge=0, le=255)]
    version: _U32


_Array = TypeVar("_Array", UpdateArray, ManifestArray, ShortManifestArray, ReceiptArray)


def encode_update(update: ModelUpdate) -> bytes:
    """Write an update: header, payload."""
    return b"".join((update_header(update), update.payload))


def update_header(update: ModelUpdate) -> bytes:
    """What stands before an update's payload: the long header when it tells the tensors' digest.

    Raises:
        InvariantError: a short one could not tell what the update holds.
    """
    if update.partial:
        return frame_header(update)
    if update.spec_digest is None:
        return short_header(update)
    array: list[object] = [
        WIRE,
        update.epoch,
        update.boot,
        update.seq,
        update.base_version,
        update.base_digest,
        update.spec_digest,
        update.codec,
        update.num_examples,
    ]
    if update.metrics or update.contributions != 1 or update.weight != 1.0:
        array += [update.contributions, float(update.weight), dict(update.metrics)]
    header: bytes = msgpack.packb(array, use_single_float=True)
    return header + bytes(-len(header) % 4)


def decode_update(data: bytes) -> ModelUpdate:
    """Read an update of any form; its payload is a view of `data`, not a copy.

    Raises:
        WireError: MALFORMED, UNKNOWN_WIRE, BAD_NUMBER or TRUNCATED.
    """
    form = data[:1]
    if form == SHORT:
        return read_short(data)
    return read_frame(data) if form == FRAME else _read_long(data)


def _read_long(data: bytes) -> ModelUpdate:
    """Read an update whose header is an array, padded to a multiple of 4."""
    array, end = _read_array(data, UpdateArray)
    start = end + -end % 4
    if len(data) < start:
        raise WireError(Reason.TRUNCATED, "the payload is missing")
    if any(data[end:start]):
        raise WireError(Reason.MALFORMED, "the padding before the payload is not zero")
    return ModelUpdate(
        epoch=Epoch(array.epoch),
        boot=Boot(array.boot),
        seq=Seq(array.seq),
        base_version=ModelVersion(array.base_version),
        base_digest=array.base_digest,
        spec_digest=array.spec_digest,
        codec=array.codec,
        num_examples=array.num_examples,
        payload=memoryview(data)[start:],
        contributions=array.contributions,
        weight=array.weight,
        metrics=array.metrics,
    )


def encode_manifest(manifest: Manifest) -> bytes:
    """Write a manifest: of a keyframe in the short form, which cuts its digests."""
    if manifest.codec == KEYFRAME:
        return _short_manifest(manifest)
    packed: bytes = msgpack.packb(
        [
            WIRE,
            manifest.epoch,
            manifest.version,
            manifest.model_digest,
            manifest.spec_digest,
            manifest.codec,
            manifest.blob,
            manifest.blob_digest,
            manifest.blob_bytes,
            manifest.chunk_bytes,
        ]
    )
    return packed


def _short_manifest(manifest: Manifest) -> bytes:
    packed: bytes = msgpack.packb(
        [
            SHORT_MANIFEST,
            manifest.epoch,
            manifest.version,
            manifest.model_digest[:8],
            int.from_bytes(manifest.spec_digest[:2], "big"),
            manifest.codec,
            manifest.serial,
            manifest.oldest,
            manifest.blob_bytes,
            manifest.chunk_bytes,
            manifest.origin.removeprefix("o"),
            manifest.ladder,
        ]
    )
    return packed


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest of either form. Raises WireError."""
    raw, end = unpacked(data, _HEAD_BOUND)
    if type(raw[0]) is int and raw[0] == SHORT_MANIFEST:
        ends_at(end, data)
        return _read_short_manifest(raw)
    array = of_this_wire(raw, ManifestArray)
    ends_at(end, data)
    if not is_name(array.blob):
        raise WireError(Reason.MALFORMED, "the blob's name may not stand in a topic")
    if array.codec == KEYFRAME:
        raise WireError(Reason.MALFORMED, f"codec {KEYFRAME} has the short form")
    return Manifest(
        epoch=Epoch(array.epoch),
        version=ModelVersion(array.version),
        model_digest=array.model_digest,
        spec_digest=array.spec_digest,
        codec=array.codec,
        blob=array.blob,
        blob_digest=array.blob_digest,
        blob_bytes=array.blob_bytes,
        chunk_bytes=array.chunk_bytes,
    )


def _read_short_manifest(raw: list[object]) -> Manifest:
    array = converted(raw, ShortManifestArray)
    if array.oldest > array.serial:
        detail = f"diffs from publication {array.oldest} to {array.serial}"
        raise WireError(Reason.BAD_NUMBER, detail)
    epoch, version = Epoch(array.epoch), ModelVersion(array.version)
    return Manifest(
        epoch=epoch,
        version=version,
        model_digest=array.model_digest,
        spec_digest=array.spec_digest.to_bytes(2, "big"),
        codec=array.codec,
        blob=keyframe_name(epoch, version),
        blob_digest=b"",
        blob_bytes=array.blob_bytes,
        chunk_bytes=array.chunk_bytes,
        serial=array.serial,
        oldest=array.oldest,
        origin=f"o{array.origin}" if array.origin else "",
        ladder=array.ladder,
    )


def encode_receipt(receipt: Receipt) -> bytes:
    """Write a receipt."""
    packed: bytes = msgpack.packb(
        [
            WIRE,
            receipt.epoch,
            receipt.boot,
            receipt.low,
            receipt.settled,
            receipt.seq,
            receipt.outcome,
            receipt.version,
        ]
    )
    return packed


def decode_receipt(data: bytes) -> Receipt:
    """Read a receipt. Raises WireError."""
    array = _read_whole(data, ReceiptArray)
    if not 0 <= array.settled < 1 << 64:
        raise WireError(Reason.BAD_NUMBER, "the map of settled numbers is not an uint64")
    return Receipt(
        epoch=Epoch(array.epoch),
        boot=Boot(array.boot),
        low=array.low,
        settled=array.settled,
        seq=array.seq,
        outcome=array.outcome,
        version=ModelVersion(array.version),
    )


def _read_whole(data: bytes, kind: type[_Array]) -> _Array:
    array, end = _read_array(data, kind)
    ends_at(end, data)
    return array


def _read_array(data: bytes, kind: type[_Array]) -> tuple[_Array, int]:
    """Read the MessagePack array at the start of `data`, and where it ends."""
    raw, end = unpacked(data, _HEAD_BOUND)
    return of_this_wire(raw, kind), end
