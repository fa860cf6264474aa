"""Raw log entries, from a stream, from archived segments, or from both. Each is (id, fields).

An archive is one folder for every epoch of a task, `ARCHIVE/{task}/{epoch:05d}/`. It holds the
model that the log begins with, `origin.msgpack`, and segments, whose names say from where to where
they go: `{ms:015d}-{serial:06d}_{ms:015d}-{serial:06d}.seg`. A segment is MessagePack:

    {"format": 1, "task", "fold", "first": id, "last": id, "count": n, "previous": hash or ""}
    [id, {field: value}]      n times
    32 bytes                  SHA-256 over everything before them

`previous` is the SHA-256 of the whole segment file before this one: a chain.

Refuses (BadLog, naming the file) a segment that is cut, altered, misnamed, swapped or missing; ids
that do not ascend; a stream that says something else than the archive, and a gap between the two.
Refuses (NotCovered) an archive of another format or another arithmetic. Nothing is unpickled, and
nothing is allocated that the file does not hold.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgpack

from fedmq.simulator.checker.errors import BadLog, NotCovered
from fedmq.simulator.checker.ids import ORIGIN, Id

Raw: TypeAlias = tuple[str, Mapping[bytes, bytes]]
"""One entry as the log holds it: its id, and its fields."""

ARITHMETIC: Final = "fold-1"
"""The only arithmetic that this checker knows."""

FORMAT: Final = 1
FILE_MAX: Final = 1 << 31
"""The largest file that is read, in bytes."""

FIELDS_MAX: Final = 16
_HASH: Final = 32
_NAME: Final = re.compile(r"(\d{15,})-(\d{6,})_(\d{15,})-(\d{6,})\.seg", re.ASCII)


@dataclass(frozen=True, slots=True)
class Origin:
    """What the log of a task begins with.

    Attributes:
        task: its name.
        epoch: its epoch.
        params: the initial parameters, little-endian float32.
    """

    task: str
    epoch: int
    params: bytes


@dataclass(frozen=True, slots=True)
class _Segment:
    """One archived piece of the log, checked by itself."""

    name: str
    first: Id
    last: Id
    previous: str
    hash: str
    entries: list[Raw]


def in_order(entries: Iterable[Raw]) -> Iterator[Raw]:
    """The same entries; BadLog as soon as one does not follow the one before."""
    last = ORIGIN
    for text, fields in entries:
        here = Id.read(text)
        if here <= last:
            raise BadLog(f"entry {here} does not follow {last}")
        last = here
        yield text, fields


def folder_of(archive: Path, task: str, epoch: int) -> Path:
    """Where an epoch of a task is archived."""
    return archive / task / f"{epoch:05d}"


def read_origin(archive: Path, task: str, epoch: int) -> Origin:
    """Read the model that the log begins with. Raises BadLog, NotCovered."""
    path = folder_of(archive, task, epoch) / "origin.msgpack"
    found = _unpacked(path.name, _bytes_of(path), 1)[0]
    if not isinstance(found, dict):
        raise BadLog(f"{path.name} is not a map")
    if found.get("format") != FORMAT:
        raise NotCovered(f"{path.name} is of format {found.get('format')!r}")
    params = found.get("params")
    if found.get("task") != task or found.get("epoch") != epoch:
        raise BadLog(f"{path.name} is of task {found.get('task')!r}, epoch {found.get('epoch')!r}")
    if not isinstance(params, bytes) or not params or len(params) % 4:
        raise BadLog(f"{path.name} does not hold parameters of float32")
    return Origin(task, epoch, params)


def read_archive(archive: Path, task: str, epoch: int) -> Iterator[Raw]:
    """All archived entries, from the origin on, one segment in memory at a time.

    Raises BadLog, NotCovered.
    """
    folder = folder_of(archive, task, epoch)
    hash_before, last = "", ORIGIN
    for path in sorted(folder.glob("*.seg"), key=_border):
        segment = _read_segment(path, task)
        if segment.previous != hash_before:
            before = "one before it" if not hash_before else "the one before it"
            raise BadLog(f"{path.name} does not follow: {before} is missing or was altered")
        if segment.first <= last:
            raise BadLog(f"{path.name} overlaps the segment before it, which ends at {last}")
        yield from segment.entries
        hash_before, last = segment.hash, segment.last


def join(archived: Iterable[Raw], stream: Iterable[Raw], trimmed: str = "0-0") -> Iterator[Raw]:
    """The whole log: what is archived, and what the stream holds after that.

    The stream may overlap the archive; from there on it must say the same, byte for byte, as far
    as it was read. `trimmed` is the highest id that was trimmed from the stream: it must not lie
    beyond the archive's end.
    """
    rest = in_order(stream)
    head = next(rest, None)
    last, both = ORIGIN, False
    for text, fields in in_order(archived):
        last = Id.read(text)
        both = both or (head is not None and Id.read(head[0]) <= last)
        if both and head is not None:
            if (text, dict(fields)) != (head[0], dict(head[1])):
                raise BadLog(f"stream and archive differ at entry {min(last, Id.read(head[0]))}")
            head = next(rest, None)
        yield text, fields
    if Id.read(trimmed) > last:
        raise BadLog(f"a gap: the archive ends at {last}, the stream was trimmed up to {trimmed}")
    if head is not None:
        yield head
        yield from rest


def _border(path: Path) -> tuple[Id, Id]:
    """From where to where a segment goes, as its name says."""
    found = _NAME.fullmatch(path.name)
    if found is None:
        raise BadLog(f"{path.name} is not the name of a segment")
    numbers = [int(text) for text in found.groups()]
    return Id(numbers[0], numbers[1]), Id(numbers[2], numbers[3])


def _bytes_of(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > FILE_MAX:
            raise BadLog(f"{path.name} has {size} bytes, more than {FILE_MAX}")
        return path.read_bytes()
    except OSError as exc:
        raise BadLog(f"{path.name} cannot be read: {exc}") from exc


def _unpacked(name: str, data: bytes | memoryview, count: int) -> list[Any]:
    """`count` MessagePack objects that fill the bytes exactly."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(data), max_ext_len=0, strict_map_key=True)
    try:
        unpacker.feed(data)
        objects = [unpacker.unpack() for _ in range(count)]
    except (msgpack.UnpackException, ValueError, RecursionError) as exc:
        raise BadLog(f"{name} is cut or altered: it is not MessagePack") from exc
    if unpacker.tell() != len(data):
        raise BadLog(f"{name} holds more than it says")
    return objects


def _read_segment(path: Path, task: str) -> _Segment:
    name, data = path.name, _bytes_of(path)
    if len(data) <= _HASH or sha256(data[:-_HASH]).digest() != data[-_HASH:]:
        raise BadLog(f"{name} is cut or altered: its SHA-256 is not the one at its end")
    body = memoryview(data)[:-_HASH]
    head = _head(name, data[:-_HASH])
    if head.get("task") != task:
        raise BadLog(f"{name} belongs to task {head.get('task')!r}")
    count, previous = head.get("count"), head.get("previous")
    if type(count) is not int or not 1 <= count <= len(data) or not isinstance(previous, str):
        raise BadLog(f"{name} has a head without count or previous")
    entries = [_entry(name, raw) for raw in _unpacked(name, body, 1 + count)[1:]]
    first, last = Id.read(entries[0][0]), Id.read(entries[-1][0])
    said = (head.get("first"), head.get("last"))
    if (str(first), str(last)) != said or (first, last) != _border(path):
        raise BadLog(f"{name} holds {first} to {last}; its head says {said[0]} to {said[1]}")
    for _ in in_order(entries):
        pass
    return _Segment(name, first, last, previous, sha256(data).hexdigest(), entries)


def _head(name: str, data: bytes) -> dict[str, Any]:
    unpacker = msgpack.Unpacker(max_buffer_size=len(data), max_ext_len=0, strict_map_key=True)
    unpacker.feed(data)
    try:
        head = unpacker.unpack()
    except (msgpack.UnpackException, ValueError, RecursionError) as exc:
        raise BadLog(f"{name} has no head") from exc
    if not isinstance(head, dict):
        raise BadLog(f"{name} has no head")
    if head.get("format") != FORMAT:
        raise NotCovered(f"{name} is of format {head.get('format')!r}")
    if head.get("fold") != ARITHMETIC:
        raise NotCovered(f"{name} was folded by {head.get('fold')!r}, not by {ARITHMETIC}")
    return head


def _entry(name: str, raw: object) -> Raw:
    """[id, {bytes: bytes}], and nothing else."""
    if not isinstance(raw, list) or len(raw) != 2:
        raise BadLog(f"{name} holds something that is not an entry")
    text, fields = raw
    if not isinstance(text, str) or not isinstance(fields, dict) or len(fields) > FIELDS_MAX:
        raise BadLog(f"{name} holds something that is not an entry")
    if not all(isinstance(part, bytes) for pair in fields.items() for part in pair):
        raise BadLog(f"{name}, entry {text}: a field is not bytes")
    return text, fields
