"""Segments: sealed pieces of a task's log, a file each. Pure: entries in, bytes out, and back.

A file is named by its first and last entry and is a concatenation of MessagePack objects:

    {"format", "task", "fold", "first", "last", "count", "previous"}    the title
    [id, {field: bytes}]                                                count times, in order

and then the 32 raw bytes of SHA-256 over everything before. `previous` is the SHA-256 of the whole
segment before, as hex digits, "" in the first: the chain that shows when one is missing.

Refuses (ConfigError, naming the file) what is torn, altered, out of order, too large, of a newer
format, or does not follow the segment before. Nothing is unpickled. What this cannot show: that the
newest segments are gone; Redis remembers the newest (`archived`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from typing import Annotated, Any, Final

import msgpack
import msgspec

from aggregator.fold import FOLD_ID
from schemas.errors import ConfigError
from schemas.log import EntryId
from schemas.names import DeviceId, Epoch, TaskName
from schemas.params import MAX_PARAMS

FORMAT: Final = 1
"""How a segment is laid out. A higher number is refused."""

SEGMENT_MAX: Final = 4 * MAX_PARAMS + (1 << 29)
"""The largest segment that is read: bounds of one, and an entry that holds a whole model."""

GONE: Final = {b"k": b"gone"}
"""What is left of an entry whose device was erased."""

_HASH: Final = 32
_TITLE: Final = ("format", "task", "fold", "first", "last", "count", "previous")
_NAME: Final = re.compile(r"(\d{15,})-(\d{6,})_(\d{15,})-(\d{6,})\.seg")
_NO_SEGMENT: Final = (msgpack.UnpackException, ValueError, TypeError, KeyError, RecursionError)


class BrokenArchiveError(ConfigError):
    """A segment that is torn, altered or missing: nothing after it can be relied on."""


@dataclass(frozen=True, slots=True)
class Logged:
    """An entry of the log as it is stored."""

    id: EntryId
    fields: Mapping[bytes, bytes]

    @property
    def gone(self) -> bool:
        """Whether its device was erased."""
        return self.fields == GONE

    @property
    def size(self) -> int:
        """Its bytes, nearly."""
        return 32 + sum(len(name) + len(value) for name, value in self.fields.items())


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A file's name: its first and its last entry."""

    first: EntryId
    last: EntryId

    def __str__(self) -> str:
        first, last = self.first, self.last
        return f"{first.ms:015d}-{first.serial:06d}_{last.ms:015d}-{last.serial:06d}.seg"

    @classmethod
    def parse(cls, text: str) -> "SegmentName":
        """Read a file's name. Raises ConfigError."""
        found = _NAME.fullmatch(text)
        name = found and cls(
            EntryId(int(found[1]), int(found[2])), EntryId(int(found[3]), int(found[4]))
        )
        if not name or str(name) != text or name.first > name.last:
            raise ConfigError(text, "is no segment's name; move it out of the archive")
        return name


class Title(msgspec.Struct, frozen=True):
    """The first object of a segment."""

    format: int
    task: str
    fold: str
    first: str
    last: str
    count: Annotated[int, msgspec.Meta(ge=1)]
    previous: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that was read: its title, its entries, and the SHA-256 of its whole file."""

    title: Title
    entries: tuple[Logged, ...]
    hash: str


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a chain: its last entry, and the hash of its last file."""

    last: EntryId
    hash: str


class Origin(msgspec.Struct, frozen=True):
    """`origin.msgpack`: from what the log is folded; little-endian float32."""

    format: int
    task: str
    epoch: Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
    params: bytes


def hash_of(data: bytes) -> str:
    """The SHA-256 of a file, as hex digits."""
    return sha256(data).hexdigest()


def pack(task: TaskName, entries: Sequence[Logged], previous: str, fold: str = FOLD_ID) -> bytes:
    """Write a segment of at least one entry, in order."""
    title = {
        "format": FORMAT,
        "task": task,
        "fold": fold,
        "first": str(entries[0].id),
        "last": str(entries[-1].id),
        "count": len(entries),
        "previous": previous,
    }
    parts: list[bytes] = [msgpack.packb(title)]
    parts += [msgpack.packb([str(each.id), dict(each.fields)]) for each in entries]
    body = b"".join(parts)
    return body + sha256(body).digest()


def unpack(file: str, data: bytes) -> Segment:
    """Read a segment whose file has this name. Raises ConfigError, naming the file."""
    body, seal = memoryview(data)[:-_HASH], data[-_HASH:]
    hasher = sha256(body)
    if len(data) > SEGMENT_MAX or len(data) <= _HASH or hasher.digest() != seal:
        raise _bad(file, "is torn or was altered: its digest is another")
    unpacker = msgpack.Unpacker(max_buffer_size=len(body), max_ext_len=0)
    unpacker.feed(body)
    try:
        title = _title(file, unpacker.unpack())
        entries = tuple(_entry(unpacker.unpack()) for _ in range(title.count))
    except _NO_SEGMENT as exc:
        raise _bad(file, f"does not hold a piece of a log ({exc or type(exc).__name__})") from exc
    if unpacker.tell() != len(body):
        raise _bad(file, "holds more than its title says")
    _check_order(file, title, entries)
    hasher.update(seal)
    return Segment(title, entries, hasher.hexdigest())


def check_follows(file: str, segment: Segment, tail: Tail | None) -> Tail:
    """Check that a segment follows the end of a chain (None: it is the first); the new end.

    Raises ConfigError, naming the file.
    """
    after = "" if tail is None else tail.hash
    if tail is not None and segment.entries[0].id <= tail.last:
        raise _bad(file, "overlaps the segment before it")
    if segment.title.previous != after:
        what = "the first is missing" if tail is None else "one is missing, or was altered, before"
        remedy = "if an erasure was interrupted, run fedmq device erase again"
        raise BrokenArchiveError(file, f"does not follow the segment before: {what} it; {remedy}")
    return Tail(segment.entries[-1].id, segment.hash)


def without_device(segment: Segment, device: DeviceId, until: EntryId) -> tuple[Logged, ...]:
    """A segment's entries, with tombstones for what a device has sent up to an entry."""
    name = device.encode()

    def left(entry: Logged) -> Logged:
        mine = entry.fields.get(b"k") == b"up" and entry.fields.get(b"d") == name
        return Logged(entry.id, GONE) if mine and entry.id <= until else entry

    return tuple(map(left, segment.entries))


def pack_origin(task: TaskName, epoch: int, params: bytes) -> bytes:
    """Write `origin.msgpack`."""
    packed: bytes = msgpack.packb(
        {"format": FORMAT, "task": task, "epoch": epoch, "params": params}
    )
    return packed


def unpack_origin(file: str, data: bytes) -> tuple[Epoch, bytes]:
    """Read `origin.msgpack`: epoch and parameters. Raises ConfigError."""
    try:
        origin = msgspec.convert(msgpack.unpackb(data, max_ext_len=0), Origin)
    except _NO_SEGMENT as exc:
        raise _bad(file, f"is no origin ({exc})") from exc
    if origin.format > FORMAT or len(origin.params) % 4:
        raise _bad(file, f"is of format {origin.format}, or torn")
    return Epoch(origin.epoch), origin.params


def check_names(folder: str, names: Iterable[SegmentName]) -> list[SegmentName]:
    """Segments in order. Raises ConfigError: two of them overlap."""
    ordered = sorted(names)
    for before, after in pairwise(ordered):
        if after.first <= before.last:
            raise _bad(f"{folder}/{after}", f"overlaps {before}")
    return ordered


def _title(file: str, raw: Any) -> Title:
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise _bad(file, "has no title")
    if raw["format"] > FORMAT:
        raise ConfigError(file, f"is of format {raw['format']}: update this fedmq")
    return msgspec.convert({name: raw[name] for name in _TITLE}, Title)


def _entry(raw: Any) -> Logged:
    entry_id, fields = raw
    if not isinstance(entry_id, str) or not isinstance(fields, dict):
        raise TypeError("no entry")
    if not all(type(part) is bytes for pair in fields.items() for part in pair):
        raise TypeError("an entry's fields are not bytes")
    parsed = EntryId.parse(entry_id)
    if str(parsed) != entry_id or parsed.ms < 0 or parsed.serial < 0:
        raise ValueError(f"no id: {entry_id!r}")
    return Logged(parsed, fields)


def _check_order(file: str, title: Title, entries: Sequence[Logged]) -> None:
    ids = [entry.id for entry in entries]
    if any(after <= before for before, after in pairwise(ids)):
        raise _bad(file, "holds entries out of order")
    ends = (str(ids[0]), str(ids[-1]))
    if (title.first, title.last) != ends or str(SegmentName(ids[0], ids[-1])) != _base(file):
        raise _bad(file, "holds other entries than its name and title say")


def _base(file: str) -> str:
    return file.rpartition("/")[2]


def _bad(file: str, what: str) -> ConfigError:
    return BrokenArchiveError(file, f"{what}; bring the file back from a copy")
