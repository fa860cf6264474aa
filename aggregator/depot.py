"""Where an archive lies: a folder, or an object store through fsspec. Knows paths, and no chain.

    ARCHIVE/{task}/{epoch:05d}/origin.msgpack
    ARCHIVE/{task}/{epoch:05d}/{first}_{last}.seg

A file is there whole or not at all: in a folder it is written beside, synced, renamed, and the
folder is synced; to an object store it is one put. What was written is read again before anybody
relies on it. Refuses (ConfigError) a URL that cannot be served, and files above a bound.

Everything here blocks: a shell calls it in a thread.
"""

import os
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from aggregator.segments import (
    SEGMENT_MAX,
    SegmentName,
    check_names,
    pack_origin,
    unpack_origin,
)
from schemas.errors import ConfigError
from schemas.names import Epoch, TaskName

_ORIGIN: Final = "origin.msgpack"
_PART: Final = ".part"


class Depot:
    """An archive of many tasks. Raises ConfigError when the URL cannot be served."""

    def __init__(self, url: str) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except ImportError as exc:
            remedy = f"needs a library that is not installed ({exc}); pip install 'fedmq[s3]'"
            raise ConfigError("archive_url", remedy) from exc
        except (ValueError, OSError):
            remedy = f"{_shown(url)!r} cannot be used; give a folder, or s3://bucket/prefix"
            raise ConfigError("archive_url", remedy) from None  # its words may repeat a password
        self._local = isinstance(self._fs, LocalFileSystem)

    def folder(self, task: TaskName, epoch: int) -> str:
        """Where the segments of one life of a task lie."""
        return f"{self._root.rstrip('/')}/{task}/{epoch:05d}"

    def epochs(self, task: TaskName) -> list[Epoch]:
        """The lives of a task that the archive knows, oldest first."""
        names = self._names(f"{self._root.rstrip('/')}/{task}")
        return [Epoch(int(name)) for name in sorted(names) if name.isdigit() and len(name) == 5]

    def segments(self, task: TaskName, epoch: int) -> list[SegmentName]:
        """The segments of a task, in order. Raises ConfigError: two overlap."""
        folder = self.folder(task, epoch)
        names = [name for name in self._names(folder) if name.endswith(".seg")]
        return check_names(folder, map(SegmentName.parse, names))

    def file(self, task: TaskName, epoch: int, name: SegmentName) -> str:
        """A segment's path."""
        return f"{self.folder(task, epoch)}/{name}"

    def read(self, file: str) -> bytes:
        """A whole file. Raises ConfigError: it is gone, or too large to be one of ours."""
        try:
            size = int(self._fs.info(file)["size"])
            if size > SEGMENT_MAX:
                raise ConfigError(file, f"has {size} bytes; a segment never has so many")
            data: bytes = self._fs.cat_file(file)
        except FileNotFoundError as exc:
            raise ConfigError(file, "is gone; bring it back from a copy") from exc
        return data

    def write(self, file: str, data: bytes) -> None:
        """Write a file, whole or not at all, and see that it is there. Raises OSError."""
        if self._local:
            _write_durably(Path(file), data)
        else:
            self._fs.pipe_file(file, data)
        self._fs.invalidate_cache()
        if self._fs.cat_file(file) != data:
            msg = f"{file}: what was written is not what can be read"
            raise OSError(msg)

    def remove(self, file: str) -> None:
        """Delete a file."""
        self._fs.rm_file(file)

    def sweep(self, task: TaskName, epoch: int) -> None:
        """Delete what a writer that died has left half-written."""
        folder = self.folder(task, epoch)
        for name in self._names(folder):
            if name.endswith(_PART):
                self._fs.rm_file(f"{folder}/{name}")

    def origin(self, task: TaskName, epoch: int) -> bytes | None:
        """The initial parameters of a task; None when they are not there. Raises ConfigError."""
        file = f"{self.folder(task, epoch)}/{_ORIGIN}"
        self._fs.invalidate_cache()
        if not self._fs.exists(file):
            return None
        return unpack_origin(file, self.read(file))[1]

    def put_origin(self, task: TaskName, epoch: int, params: bytes) -> None:
        """Keep the initial parameters. Raises ConfigError: others are there already."""
        known = self.origin(task, epoch)
        if known is None:
            file = f"{self.folder(task, epoch)}/{_ORIGIN}"
            self.write(file, pack_origin(task, epoch, params))
        elif known != params:
            remedy = f"{self.folder(task, epoch)} holds another task of this name and epoch"
            raise ConfigError("archive_url", f"{remedy}; move it away, or choose another place")

    def _names(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found: list[Any] = self._fs.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in found]


def _shown(url: str) -> str:
    """Scheme and path of a URL: what stands between them, or after them, may be a secret."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    return f"{scheme}://.../{rest.rpartition('@')[2].partition('?')[0].partition('/')[2]}"


def _write_durably(path: Path, data: bytes) -> None:
    """Write beside, sync, rename, sync the folder: a crash leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + _PART)
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    for folder in (path.parent, *path.parents[1:3]):  # the folders above may be new as well
        _sync(folder)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
