"""What a task takes of the disk, and how a bound on it is shared out. Pure.

A spool is a file and its write-ahead log. Of a bound the file gets five eighths and the log three:
a log grows by its largest transaction (a model that is adopted, or an update with its residual)
above the size at which it is written back.
"""

from typing import Final

from edge_agent.download import Whole
from schemas.codecs import codec_by_name
from schemas.lattice import KEYFRAME
from schemas.messages import Manifest
from schemas.task import TaskSpec
from schemas.uplink import read_uplink

MB: Final = 1 << 20
PAGE: Final = 4096
"""Bytes of a page of the file."""

_ROW: Final = 150
"""What a small row costs besides its data: keys, twice, and its place on a page."""

_TABLES: Final = 16 * PAGE
"""Tables without rows, names and numbers."""


def file_pages(bound: int) -> int:
    """Pages that the file may have, of a bound in bytes."""
    return bound * 5 // 8 // PAGE


def log_bytes(bound: int) -> int:
    """Bytes that the log may keep when it is empty again."""
    return bound * 3 // 8


def checkpoint_pages(bound: int) -> int:
    """Pages of the log above which it is written back."""
    return max(1, min(1000, bound // 16 // PAGE))


def on_pages(size: int) -> int:
    """What one large value takes."""
    return -(-size // (PAGE - 4)) * PAGE + PAGE


def chunks_on_pages(whole: Whole) -> int:
    """What the chunks of a model, or of a bundle, take before it is put together."""
    size, number = whole.chunk_bytes, whole.chunks
    if size + _ROW > PAGE:
        return number * (on_pages(size) + _ROW)
    return number * (PAGE // (PAGE // (size + _ROW)) + _ROW)


def blob_bytes_most(manifest: Manifest, spec: TaskSpec) -> int:
    """The largest blob that can be a model of a task: its parameters, or a keyframe of them."""
    if manifest.codec != KEYFRAME:
        return 4 * spec.params.size
    # Rice codes may take a few bits more than the numbers themselves, and every tensor has a head
    return 5 * spec.params.wire_size + 16 * len(spec.params.tensors) + 64


def fixed_bytes(spec: TaskSpec) -> int:
    """What a task takes without any update: model, bundle, chunks, residual, tensors of its own."""
    model, local = 4 * spec.params.size, _local_bytes(spec)
    fetched = max(model, 0 if spec.bundle is None else spec.bundle.bytes)  # one after the other
    chunks = on_pages(fetched * 5 // 4)
    kept = _model_bytes(spec) + _origin_bytes(spec) + _bundle_bytes(spec)
    return _TABLES + kept + chunks + _left_bytes(spec) + local


def room_for_updates(bound: int, spec: TaskSpec) -> int:
    """What the open updates may take together."""
    return file_pages(bound) * PAGE - fixed_bytes(spec)


def update_bytes(spec: TaskSpec) -> int:
    """What the largest possible update of a task takes."""
    most = read_uplink(spec.uplink).message_bytes or spec.max_update_bytes
    return on_pages(min(most, spec.max_update_bytes))


def megabytes_needed(spec: TaskSpec) -> int:
    """The least bound in which a device can take part: one update at a time."""
    largest = max(
        _model_bytes(spec),
        _bundle_bytes(spec),
        _left_bytes(spec) + _local_bytes(spec) + update_bytes(spec),
    )
    in_file = fixed_bytes(spec) + update_bytes(spec)
    # the log is written back above a sixteenth of the bound; its frames have headers
    in_log = largest + largest // 100 + 8 * PAGE
    return -(-max(in_file * 8 // 5, in_log * 16 // 5) // MB)


def _model_bytes(spec: TaskSpec) -> int:
    """The parameters and, of a model that walks on a lattice, their place there."""
    place = on_pages(4 * spec.params.wire_size) if spec.publish.lattice else 0
    return on_pages(4 * spec.params.size) + place


def _origin_bytes(spec: TaskSpec) -> int:
    """Where the lattice begins.

    Even with a seed it may have to be fetched: it is another where a lattice was begun late.
    """
    return on_pages(4 * spec.params.size) if spec.publish.lattice else 0


def _bundle_bytes(spec: TaskSpec) -> int:
    return 0 if spec.bundle is None else on_pages(spec.bundle.bytes)


def _left_bytes(spec: TaskSpec) -> int:
    """The residual; with error feedback the one from before the newest update, too."""
    kept = 2 if codec_by_name(spec.codec.name).error_feedback else 1
    return kept * on_pages(4 * spec.params.wire_size)


def _local_bytes(spec: TaskSpec) -> int:
    return sum(on_pages(4 * t.size) for t in spec.params.tensors if t.kind == "local")
