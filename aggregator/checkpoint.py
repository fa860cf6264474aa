"""A checkpoint: the fold's state as bytes, and back. A cache of the fold, with a cursor.

Pure. The small part is one JSON document, the vectors are raw little-endian float32, a window is
its top (uint32) and its outcome bytes. Refuses (InvariantError) what another arithmetic made.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import numpy as np

from aggregator.fold import FOLD_ID, Changes, Sender, Tally, TaskState
from aggregator.strategies import State
from schemas.errors import InvariantError
from schemas.log import EntryId
from schemas.names import Boot, DeviceId, Epoch
from schemas.params import Params
from schemas.task import TaskSpec
from schemas.window import SPAN, SeqWindow

_VIEW: Final = "view:"


class LivingBlob(msgspec.Struct, frozen=True):
    """A blob whose chunks are retained on the broker."""

    name: str
    chunks: int


class SmallState(msgspec.Struct, frozen=True):
    """Everything of a TaskState but vectors and windows, and what the outbox must remember."""

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


def small_state(state: TaskState, living: tuple[LivingBlob, ...]) -> bytes:
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
        )
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
    return small


def restore(
    small: SmallState, vectors: Mapping[str, bytes], windows: Mapping[str, bytes]
) -> TaskState:
    """Put a TaskState together again."""
    arrays = {name: vector_from_bytes(data) for name, data in vectors.items()}
    model = {name: vector for name, vector in arrays.items() if not name.startswith(_VIEW)}
    views = {
        int(name.removeprefix(_VIEW)): vector
        for name, vector in arrays.items()
        if name.startswith(_VIEW)
    }
    return TaskState(
        epoch=Epoch(small.epoch),
        model=State(small.version, model, small.buffered),
        cursor=EntryId.parse(small.cursor),
        spec=small.spec,
        bases=dict(small.bases),
        views=dict(sorted(views.items())),
        published_ms=small.published_ms,
        buffered_ms=small.buffered_ms,
        windows={sender_from_text(k): window_from_bytes(v) for k, v in windows.items()},
        tally=small.tally,
    )


def changed_vectors(state: TaskState, changes: Changes) -> dict[str, bytes | None]:
    """The vectors to write; None for one to delete."""
    living = dict(state.model.vectors)
    living |= {f"{_VIEW}{version}": view for version, view in state.views.items()}
    return {
        name: vector_to_bytes(living[name]) if name in living else None
        for name in sorted(changes.vectors)
    }


def changed_windows(state: TaskState, senders: Iterable[Sender]) -> dict[str, bytes]:
    """The windows to write."""
    return {sender_to_text(s): window_to_bytes(state.windows[s]) for s in senders}


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
