"""The newest samples of a live topic, in memory and on the disk: a bounded ring (SQLite).

Samples are written some seconds after they came, many at a time; a power cut costs those of the
last seconds. The file grows to its bound and no further: old rows make room for new ones.
"""

import json
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_agent.sources.samples import Array
from schemas.errors import ConfigError

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (number INTEGER PRIMARY KEY, sample BLOB NOT NULL);
"""

_ROWS: Final = """
SELECT number, sample FROM samples WHERE typeof(sample) = 'blob' AND length(sample) = ?
ORDER BY number DESC LIMIT ?
"""

BUSY_S: Final = 5.0
"""How long another process may hold the file."""

_THE_DISK: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    }
)
"""What is no fault of the file, and may pass."""

Fits: TypeAlias = Callable[[Array, float], bool]
"""Whether a sample, x of the ring's shape and its label, may be trained on."""


class Ring:
    """At most `most` samples; the oldest goes first. May be used by several threads.

    Args:
        path: of its file.
        form: what the samples are of; what is kept of another form is thrown away.
        shape: of a sample's x.
        most: samples that are kept, at least 1.
        dtype: of a sample's x: float32, or float64 for whole numbers.

    Raises:
        ConfigError: the file is none of ours.
        ValueError: the disk does not let it be read or written now; it may later.
    """

    def __init__(
        self,
        path: Path,
        form: str,
        shape: tuple[int, ...],
        most: int,
        dtype: type[np.floating] = np.float32,
    ) -> None:
        self._shape, self._most = shape, most
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._lock = threading.Lock()  # of what is in memory
        self._disk = threading.Lock()  # of the file; taken first where both are
        self._kept: deque[tuple[NDArray[Any], float]] = deque(maxlen=most)
        self._unwritten: deque[tuple[int, bytes]] = deque(maxlen=most)
        self._count = 0
        self._fields: tuple[str, ...] = ()
        self._noted: tuple[str, ...] = ()
        self._is_closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open(path, form)
        except (sqlite3.DatabaseError, ValueError, TypeError) as exc:
            if getattr(exc, "sqlite_errorcode", 0) & 0xFF in _THE_DISK:
                remedy = "make room, or free what holds it; it is tried again"
                raise ValueError(f"{path} cannot be used now ({exc}): {remedy}") from exc
            raise ConfigError(
                "state_dir", f"{path} holds no samples ({exc}); move it away"
            ) from exc

    def add(self, x: NDArray[Any], y: float) -> None:
        """Take a sample: x of the ring's shape, and its label."""
        with self._lock:
            self._kept.append((x, y))
            raw = np.float64(y).astype("<f8").tobytes() + x.astype(self._dtype).tobytes()
            self._unwritten.append((self._count, raw))
            self._count += 1

    def all(self) -> tuple[Array, Array, int]:
        """x, shape (n, *shape), labels, float64, shape (n,), and the number of the first."""
        with self._lock:
            kept, first = list(self._kept), self._count - len(self._kept)
        x = np.array([each for each, _ in kept], self._dtype.newbyteorder("="))
        return x.reshape(-1, *self._shape), np.array([label for _, label in kept]), first

    def keep_what(self, fits: Fits) -> int:
        """Drop the samples that do not fit, and say how many; those before them count on."""
        with self._lock:
            before = len(self._kept)
            self._kept = deque((s for s in self._kept if fits(*s)), self._most)
            return before - len(self._kept)

    @property
    def most(self) -> int:
        """How many samples are kept at most."""
        return self._most

    def __len__(self) -> int:
        """How many samples are kept."""
        return len(self._kept)

    @property
    def fields(self) -> tuple[str, ...]:
        """Of what fields its samples are made, as noted before; none: nothing was."""
        return self._fields

    def note_fields(self, fields: tuple[str, ...]) -> None:
        """Keep this for the next life; it is written with the next samples."""
        self._fields = fields

    @property
    def count(self) -> int:
        """How many samples there have ever been."""
        return self._count

    def write(self) -> None:
        """Put on the disk what is not there yet; nothing once it is closed. Raises sqlite3.Error.

        What the disk does not take is kept for the next time: the newest, as many as there is
        room for.
        """
        with self._disk:
            if not self._is_closed:
                self._write()

    def close(self) -> None:
        """Write what is left, if that is possible, and close the file once no one writes to it."""
        with self._disk:
            if self._is_closed:
                return
            with suppress(sqlite3.Error):
                self._write()
            self._is_closed = True
            self._db.close()

    def _write(self) -> None:
        with self._lock:
            rows, count, fields = list(self._unwritten), self._count, self._fields
            self._unwritten.clear()
        if not rows and fields == self._noted:
            return
        try:
            with self._db:  # one transaction
                self._db.execute("BEGIN IMMEDIATE")
                self._put("fields", json.dumps(fields))
                self._db.executemany("INSERT OR REPLACE INTO samples VALUES (?, ?)", rows)
                self._db.execute("DELETE FROM samples WHERE number < ?", (count - self._most,))
        except sqlite3.Error:
            with self._lock:
                room = self._most - len(self._unwritten)
                self._unwritten.extendleft(reversed(rows[max(0, len(rows) - room) :]))
            raise
        self._noted = fields

    def _put(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _open(self, path: Path, form: str) -> None:
        with ExitStack() as failing:
            self._db = failing.enter_context(
                closing(
                    sqlite3.connect(
                        path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
                    )
                )
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._load(form)
            failing.pop_all()

    def _load(self, form: str) -> None:
        kept: dict[str, str] = dict(self._db.execute("SELECT key, value FROM meta"))
        if kept.get("form") != form:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("DELETE FROM samples")
                self._db.execute("DELETE FROM meta")
                self._put("form", form)
            return
        self._fields = self._noted = tuple(json.loads(kept.get("fields", "[]")))
        (last,) = self._db.execute("SELECT MAX(number) FROM samples").fetchone()
        self._count = 0 if last is None else last + 1
        size = 8 + self._dtype.itemsize * int(np.prod(self._shape, dtype=int))
        for _, raw in self._db.execute(_ROWS, (size, self._most)):
            x = np.frombuffer(raw, self._dtype, offset=8).astype(self._dtype.newbyteorder("="))
            label = float(np.frombuffer(raw, "<f8", count=1)[0])
            self._kept.appendleft((x.reshape(self._shape), label))
