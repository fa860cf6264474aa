"""A task as one file: all that a task is, to be kept elsewhere and to be brought back. Pure.

A ZIP archive (stored, so that any tool can look inside):

    fedmq.json      what this is: format, schema, fold, task, epoch, cursor, when; and of every
                    member its size and SHA-256
    small.json      the checkpoint's small part
    origin.f32      the initial parameters
    arrays/NAME     the vectors of the fold
    blobs/NAME      the published versions that are kept
    windows.msgpack, devices.msgpack, versions.msgpack      maps of bytes
    log.msgpack     what the log holds after the checkpoint's cursor: [[id, {field: bytes}], ...]

Refuses (ConfigError) what is torn, altered, too large, or of a newer format. Nothing is unpickled.
"""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any, Final

import msgpack
import msgspec

from aggregator.checkpoint import SCHEMA, SmallState, read_small_state
from aggregator.strategies.ca2fl import CACHE
from schemas.errors import ConfigError, InvariantError
from schemas.names import TaskName, task_name
from schemas.params import MAX_PARAMS

FORMAT: Final = 1
"""How the file is laid out. A higher number is refused."""

MEMBER_MAX: Final = 4 * MAX_PARAMS
"""The largest member that is read, in bytes."""

MEMBERS_MAX: Final = 8192

_CACHES: Final = "caches.msgpack"
"""What is kept by device (CA2FL), in one member: there may be as many as devices."""

_NO_CACHES: Final = b"\x80"
"""An empty map."""

_NO_EXPORT: Final = (
    zipfile.BadZipFile,
    zlib.error,
    KeyError,
    ValueError,
    EOFError,
    NotImplementedError,  # a method of compression that this Python does not have
    RuntimeError,  # a member that says it is encrypted
)
"""What a ZIP file that is torn or altered makes zipfile raise."""

_MAPS: Final = ("windows", "devices", "versions")


class MemberInfo(msgspec.Struct, frozen=True):
    """What a member must be."""

    size: Annotated[int, msgspec.Meta(ge=0, le=MEMBER_MAX)]
    sha256: str


class Title(msgspec.Struct, frozen=True):
    """fedmq.json."""

    format: int
    schema: int
    fold_id: str
    task: str
    epoch: int
    cursor: str
    made_ms: int
    members: dict[str, MemberInfo]


@dataclass(frozen=True, slots=True)
class Backup:
    """Everything that a task is.

    Attributes:
        task: its name when it was exported.
        made_ms: when that was, in milliseconds since 1970.
        small: the checkpoint's small part, as bytes.
        origin: the initial parameters, little-endian float32.
        arrays: the fold's vectors, by name.
        windows: device/boot -> the settled numbers.
        devices: device -> its record.
        versions: version -> its record.
        blobs: the published versions that are kept, by name.
        tail: what the log held after the cursor: (entry id, fields).
    """

    task: TaskName
    made_ms: int
    small: bytes
    origin: bytes
    arrays: Mapping[str, bytes] = field(default_factory=dict)
    windows: Mapping[str, bytes] = field(default_factory=dict)
    devices: Mapping[str, bytes] = field(default_factory=dict)
    versions: Mapping[str, bytes] = field(default_factory=dict)
    blobs: Mapping[str, bytes] = field(default_factory=dict)
    tail: Sequence[tuple[str, Mapping[bytes, bytes]]] = ()

    @property
    def state(self) -> SmallState:
        """The small part as a value. Raises InvariantError."""
        return read_small_state(self.small)


def pack(backup: Backup) -> bytes:
    """Write the file."""
    members = {"small.json": backup.small, "origin.f32": backup.origin}
    caches = {name: data for name, data in backup.arrays.items() if name.startswith(CACHE)}
    plain = {name: data for name, data in backup.arrays.items() if name not in caches}
    members |= {f"arrays/{name}": data for name, data in plain.items()}
    members |= {_CACHES: msgpack.packb(caches)} if caches else {}
    members |= {f"blobs/{name}": data for name, data in backup.blobs.items()}
    maps: tuple[Any, ...] = (backup.windows, backup.devices, backup.versions)
    for name, mapping in zip(_MAPS, maps, strict=True):
        members[f"{name}.msgpack"] = msgpack.packb(dict(mapping))
    tail: Any = [[entry_id, dict(fields)] for entry_id, fields in backup.tail]
    members["log.msgpack"] = msgpack.packb(tail)
    small = backup.state
    title = Title(
        format=FORMAT,
        schema=small.schema,
        fold_id=small.fold_id,
        task=backup.task,
        epoch=small.epoch,
        cursor=small.cursor,
        made_ms=backup.made_ms,
        members={n: MemberInfo(len(d), sha256(d).hexdigest()) for n, d in members.items()},
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("fedmq.json", msgspec.json.format(msgspec.json.encode(title)))
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def unpack(data: bytes) -> Backup:
    """Read the file. Raises ConfigError, naming what is wrong with it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            title = _title(archive)
            members = {name: _member(archive, name, info) for name, info in title.members.items()}
    except _NO_EXPORT as exc:
        raise _torn(f"is torn, or is no export ({exc})") from exc
    try:
        return _backup(title, members)
    except (KeyError, ValueError, TypeError, msgpack.UnpackException, InvariantError) as exc:
        raise _torn(f"does not hold a task ({exc})") from exc


def _torn(remedy: str) -> ConfigError:
    return ConfigError("file", f"{remedy}; nothing was changed, take another copy")


def _title(archive: zipfile.ZipFile) -> Title:
    if archive.getinfo("fedmq.json").file_size > 1 << 24:
        raise _torn("has a title of more than 16 MiB")
    raw = archive.read("fedmq.json")
    try:
        title = msgspec.json.decode(raw, type=Title)
    except msgspec.DecodeError as exc:
        raise _torn(f"has a title that cannot be read ({exc})") from exc
    if title.format > FORMAT or title.schema > SCHEMA:
        newer = f"is of format {title.format}, schema {title.schema}"
        raise ConfigError("file", f"{newer}: a newer fedmq wrote it, update this one")
    if len(title.members) > MEMBERS_MAX:
        raise _torn(f"claims {len(title.members)} members")
    return title


def _member(archive: zipfile.ZipFile, name: str, info: MemberInfo) -> bytes:
    if archive.getinfo(name).file_size != info.size:
        raise _torn(f"is torn: {name} has another size than its title says")
    data = archive.read(name)
    if sha256(data).hexdigest() != info.sha256:
        raise _torn(f"was altered: {name} has another digest than its title says")
    return data


def _backup(title: Title, members: Mapping[str, bytes]) -> Backup:
    maps = {name: _map(members[f"{name}.msgpack"]) for name in _MAPS}
    backup = Backup(
        task=task_name(title.task),
        made_ms=title.made_ms,
        small=members["small.json"],
        origin=members["origin.f32"],
        arrays=_below("arrays/", members) | _map(members.get(_CACHES, _NO_CACHES)),
        blobs=_below("blobs/", members),
        tail=[(str(entry_id), dict(fields)) for entry_id, fields in _bare(members["log.msgpack"])],
        **maps,
    )
    if backup.state.epoch != title.epoch:
        raise ValueError("title and checkpoint name different epochs")
    return backup


def _below(folder: str, members: Mapping[str, bytes]) -> dict[str, bytes]:
    return {n.removeprefix(folder): d for n, d in members.items() if n.startswith(folder)}


def _map(data: bytes) -> dict[str, bytes]:
    return {str(key): bytes(value) for key, value in _bare(data).items()}


def _bare(data: bytes) -> Any:
    """Plain MessagePack: maps, arrays, text and bytes, none longer than the data itself."""
    return msgpack.unpackb(data, max_ext_len=0, strict_map_key=False)
