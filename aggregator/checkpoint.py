"""A checkpoint: the fold's state as bytes, and back. A cache of the fold, with a cursor.

Pure. The small part is one JSON document, the vectors are raw little-endian float32, a window is
its top (uint32) and its outcome bytes, a device is one JSON object. Refuses (InvariantError) what
another arithmetic made, and what a newer fedmq wrote.

Schema 1 knew no releases and no devices: `migrated` makes them from what it had. Schema 2 knew no
lattice.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np

from aggregator.fold import FOLD_ID
from aggregator.pacing import Pacing
from aggregator.state import Changes, DeviceRecord, Lattice, Release, Sender, Tally, TaskState
from aggregator.strategies import Row, State
from aggregator.strategies.ca2fl import CACHE
from schemas.errors import InvariantError
from schemas.lattice import decode_keyframe, sizes_of
from schemas.log import EntryId
from schemas.names import Boot, DeviceId, Epoch
from schemas.params import Params
from schemas.task import Phase, TaskSpec
from schemas.window import SPAN, SeqWindow
from schemas.wire import decode_manifest

SCHEMA: Final = 3
"""How a checkpoint is laid out. A higher number is refused, a lower one migrated."""

_VIEW: Final = "view:"
_HALF: Final = "half:"
_KEYFRAME: Final = "keyframe"
_BESIDE: Final = ("fixed", "good", "origin")
"""Vectors that are the fold's and not the strategy's."""


class LivingBlob(msgspec.Struct, frozen=True):
    """A blob whose chunks are retained on the broker."""

    name: str
    chunks: int


class LatticeState(msgspec.Struct, frozen=True):
    """The small part of a Lattice; a rung is (first publication, level, bytes)."""

    name: str
    drawn: bool
    chunk_bytes: int
    first: int
    rungs: tuple[tuple[int, int, int], ...]
    newest: tuple[int, ...]


class SmallState(msgspec.Struct, frozen=True):
    """Everything of a TaskState but vectors, windows and devices; and where the blobs lie."""

    fold_id: str
    epoch: int
    cursor: str
    version: int
    buffered: int
    buffered_ms: int
    published_ms: int
    spec: TaskSpec | None
    bases: list[tuple[int, int]]
    tally: Tally
    living: tuple[LivingBlob, ...] = ()
    schema: int = 1
    kept: tuple[str, ...] = ()
    phase: Phase = "running"
    started_ms: int = 0
    codecs: tuple[int, ...] = ()
    sealed: bool = False
    proposed: int | None = None
    releases: list[Release] = []
    candidate: int | None = None
    pins: dict[str, int] = {}
    pinned: dict[str, int] = {}
    best: float | None = None
    since_best: int = 0
    lattice: LatticeState | None = None
    serial: int = 0
    pacing: Pacing = Pacing()
    scalars: dict[str, float] = {}
    rows: tuple[Row, ...] = ()


def small_state(
    state: TaskState, living: tuple[LivingBlob, ...], kept: tuple[str, ...] = ()
) -> bytes:
    """Write the small part."""
    return msgspec.json.encode(
        SmallState(
            fold_id=FOLD_ID,
            epoch=state.epoch,
            cursor=str(state.cursor),
            version=state.model.version,
            buffered=state.model.buffered,
            buffered_ms=state.buffered_ms,
            published_ms=state.published_ms,
            spec=state.spec,
            bases=list(state.bases.items()),
            tally=state.tally,
            living=living,
            schema=SCHEMA,
            kept=kept,
            phase=state.phase,
            started_ms=state.started_ms,
            codecs=state.codecs,
            sealed=state.sealed,
            proposed=state.proposed,
            releases=list(state.releases.values()),
            candidate=state.candidate,
            pins=state.pins,
            pinned={str(device): version for device, version in state.pinned.items()},
            best=state.best,
            since_best=state.since_best,
            lattice=None if state.lattice is None else _small_lattice(state.lattice),
            serial=state.serial,
            pacing=state.pacing,
            scalars=dict(state.model.scalars),
            rows=state.model.rows,
        )
    )


def _small_lattice(lattice: Lattice) -> LatticeState:
    return LatticeState(
        name=lattice.name,
        drawn=lattice.drawn,
        chunk_bytes=lattice.chunk_bytes,
        first=lattice.first,
        rungs=tuple((*rung, size) for rung, size in lattice.rungs.items()),
        newest=lattice.newest,
    )


def read_small_state(data: bytes) -> SmallState:
    """Read the small part. Raises InvariantError."""
    try:
        small = msgspec.json.decode(data, type=SmallState)
    except msgspec.DecodeError as exc:
        msg = f"the checkpoint cannot be read: {exc}"
        raise InvariantError(msg) from exc
    if small.fold_id != FOLD_ID:
        msg = f"the checkpoint was folded by {small.fold_id}, this is {FOLD_ID}"
        raise InvariantError(msg)
    if small.schema > SCHEMA:
        msg = f"the checkpoint has schema {small.schema}, this fedmq knows {SCHEMA}: update it"
        raise InvariantError(msg)
    return small


def migrated(
    small: SmallState,
    manifest: bytes | None,
    windows: Iterable[str],
    known: Mapping[str, bytes],
) -> tuple[SmallState, dict[str, bytes]]:
    """Bring a checkpoint of an older schema up: (small part, devices).

    Schema 1 -> 2: the newest published version becomes the only release; every device that has a
    window is known, though not what it did; ids of codecs are those of the specification.
    Schema 2 -> 3: nothing that it had has changed.
    """
    if small.schema == 2:
        return msgspec.structs.replace(small, schema=SCHEMA), dict(known)
    first_ms = EntryId.parse(small.cursor).ms
    boots: dict[DeviceId, list[int]] = {}
    for device, boot in sorted(map(sender_from_text, windows)):
        boots.setdefault(device, []).append(boot)
    devices = {
        str(device): msgspec.json.encode(DeviceRecord(boots=tuple(found)))
        for device, found in boots.items()
    }
    if manifest is None:
        return msgspec.structs.replace(small, schema=SCHEMA, started_ms=first_ms), devices
    newest = decode_manifest(manifest)
    release = Release(newest.version, small.published_ms, manifest, "published", small.tally.folded)
    return (
        msgspec.structs.replace(
            small,
            schema=SCHEMA,
            started_ms=first_ms,
            proposed=newest.version,
            releases=[release],
            kept=tuple(blob.name for blob in small.living),
        ),
        devices,
    )


def restore(
    small: SmallState,
    vectors: Mapping[str, bytes],
    windows: Mapping[str, bytes],
    devices: Mapping[str, bytes],
) -> TaskState:
    """Put a TaskState together again."""
    raw = {name: data for name, data in vectors.items() if _is_walk(name) or _is_packed(name)}
    arrays = {name: vector_from_bytes(data) for name, data in vectors.items() if name not in raw}
    packed = {name: data for name, data in raw.items() if _is_packed(name)}
    model = {
        name: vector
        for name, vector in arrays.items()
        if not name.startswith(_VIEW) and name not in _BESIDE
    }
    views = {
        int(name.removeprefix(_VIEW)): vector
        for name, vector in arrays.items()
        if name.startswith(_VIEW)
    }
    return TaskState(
        epoch=Epoch(small.epoch),
        model=State(small.version, model, small.buffered, dict(small.scalars), small.rows, packed),
        cursor=EntryId.parse(small.cursor),
        spec=small.spec,
        phase=small.phase,
        started_ms=small.started_ms,
        fixed=arrays.get("fixed"),
        bases=dict(small.bases),
        views=dict(sorted(views.items())),
        good=arrays.get("good"),
        codecs=small.codecs,
        sealed=small.sealed,
        proposed=small.proposed,
        published_ms=small.published_ms,
        buffered_ms=small.buffered_ms,
        windows={sender_from_text(k): window_from_bytes(v) for k, v in windows.items()},
        devices={DeviceId(k): device_from_bytes(v) for k, v in devices.items()},
        releases={release.version: release for release in small.releases},
        candidate=small.candidate,
        pins=dict(small.pins),
        pinned={DeviceId(k): v for k, v in small.pinned.items()},
        lattice=_lattice(small.lattice, small.spec, arrays.get("origin"), raw),
        serial=small.serial,
        best=small.best,
        since_best=small.since_best,
        tally=small.tally,
        pacing=small.pacing,
    )


def _lattice(
    small: LatticeState | None,
    spec: TaskSpec | None,
    origin: Params | None,
    walk: Mapping[str, bytes],
) -> Lattice | None:
    if small is None or spec is None or origin is None:
        return None
    q, exponents = decode_keyframe(walk[_KEYFRAME], sizes_of(spec.params))
    halves = {
        int(name.removeprefix(_HALF)): data for name, data in sorted(walk.items()) if is_half(name)
    }
    return Lattice(
        origin=origin,
        name=small.name,
        drawn=small.drawn,
        q=q,
        exponents=exponents,
        keyframe=walk[_KEYFRAME],
        chunk_bytes=small.chunk_bytes,
        first=small.first,
        halves=halves,
        rungs={(serial, level): size for serial, level, size in small.rungs},
        newest=small.newest,
    )


def _is_walk(name: str) -> bool:
    """Whether these bytes are not float32: where the published model stands on its lattice."""
    return name == _KEYFRAME or is_half(name)


def _is_packed(name: str) -> bool:
    """Whether these bytes are the strategy's own, in its own form."""
    return name.startswith(CACHE)


def is_half(name: str) -> bool:
    """Whether this is a diff that waits for its second half."""
    return name.startswith(_HALF)


def changed_vectors(state: TaskState, changes: Changes) -> dict[str, bytes | None]:
    """The vectors to write; None for one to delete."""
    living = dict(state.model.vectors)
    living |= {f"{_VIEW}{version}": view for version, view in state.views.items()}
    lattice = state.lattice
    origin = None if lattice is None else lattice.origin
    beside = zip(_BESIDE, (state.fixed, state.good, origin), strict=True)
    living |= {name: vector for name, vector in beside if vector is not None}
    walk: dict[str, bytes] = {}
    if lattice is not None:
        walk[_KEYFRAME] = lattice.keyframe
        walk |= {f"{_HALF}{level}": diff for level, diff in lattice.halves.items()}
    return {
        name: vector_to_bytes(living[name])
        if name in living
        else walk.get(name, state.model.packed.get(name))
        for name in sorted(changes.vectors)
    }


def changed_windows(state: TaskState, senders: Iterable[Sender]) -> dict[str, bytes]:
    """The windows to write."""
    return {sender_to_text(s): window_to_bytes(state.windows[s]) for s in senders}


def changed_devices(state: TaskState, changes: Changes) -> dict[str, bytes]:
    """The records of devices to write."""
    return {str(d): msgspec.json.encode(state.devices[d]) for d in sorted(changes.devices)}


def device_from_bytes(data: bytes) -> DeviceRecord:
    """Read a device's record. Raises InvariantError."""
    try:
        return msgspec.json.decode(data, type=DeviceRecord)
    except msgspec.DecodeError as exc:
        msg = f"a device's record cannot be read: {exc}"
        raise InvariantError(msg) from exc


def vector_to_bytes(vector: Params) -> bytes:
    """Little-endian float32."""
    return vector.astype("<f4", copy=False).tobytes()


def vector_from_bytes(data: bytes) -> Params:
    """A writable float32 vector."""
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def sender_to_text(sender: Sender) -> str:
    """`device/boot`, boot in hexadecimal."""
    return f"{sender[0]}/{sender[1]:08x}"


def sender_from_text(text: str) -> Sender:
    """Read `device/boot`."""
    device, _, boot = text.rpartition("/")
    return DeviceId(device), Boot(int(boot, 16))


def window_to_bytes(window: SeqWindow) -> bytes:
    """The top as uint32, little-endian, then the outcome bytes."""
    return window.top.to_bytes(4, "little") + window.outcomes


def window_from_bytes(data: bytes) -> SeqWindow:
    """Read a window."""
    return SeqWindow(int.from_bytes(data[:4], "little"), data[4 : 4 + SPAN])
