"""The newest samples of a live topic, in memory and on the disk: a bounded ring (SQLite).

Samples are written some seconds after they came, many at a time; a power cut costs those of the
last seconds. The file grows to its bound and no further: old rows make room for new ones.
"""

import json
import sqlite3
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.sources.samples import Array
from schemas.errors import ConfigError

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS samples (number INTEGER PRIMARY KEY, sample BLOB NOT NULL);
"""


class Ring:
    """At most `most` samples; the oldest goes first. May be used by several threads.

    Args:
        path: of its file.
        form: what the samples are of; what is kept of another form is thrown away.
        shape: of a sample's x.
        most: samples that are kept, at least 1.

    Raises:
        ConfigError: the file is none of ours.
    """

    def __init__(self, path: Path, form: str, shape: tuple[int, ...], most: int) -> None:
        self._shape, self._most = shape, most
        self._lock = threading.Lock()
        self._kept: deque[tuple[NDArray[np.float32], float]] = deque(maxlen=most)
        self._unwritten: deque[tuple[int, bytes]] = deque(maxlen=most)
        self._count = 0
        self._fields: tuple[str, ...] = ()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
            self._load(form)
        except (sqlite3.DatabaseError, ValueError) as exc:
            raise ConfigError(
                "state_dir", f"{path} holds no samples ({exc}); move it away"
            ) from exc

    def add(self, x: NDArray[np.float32], y: float) -> None:
        """Take a sample: x of the ring's shape, and its label."""
        with self._lock:
            self._kept.append((x, y))
            raw = np.float64(y).tobytes() + x.astype("<f4").tobytes()
            self._unwritten.append((self._count, raw))
            self._count += 1

    def all(self) -> tuple[Array, Array, int]:
        """x, shape (n, *shape), labels, float64, shape (n,), and the number of the first."""
        with self._lock:
            kept, first = list(self._kept), self._count - len(self._kept)
        x = np.array([each for each, _ in kept], np.float32).reshape(-1, *self._shape)
        return x, np.array([label for _, label in kept]), first

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
        """Keep this for the next life. Raises sqlite3.Error."""
        self._fields = fields
        self._put("fields", json.dumps(fields))

    @property
    def count(self) -> int:
        """How many samples there have ever been."""
        return self._count

    def write(self) -> None:
        """Put on the disk what is not there yet. Raises sqlite3.Error."""
        with self._lock:
            rows, count = list(self._unwritten), self._count
            self._unwritten.clear()
        if not rows:
            return
        try:
            with self._db:  # one transaction
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("INSERT OR REPLACE INTO samples VALUES (?, ?)", rows)
                self._db.execute("DELETE FROM samples WHERE number < ?", (count - self._most,))
        except sqlite3.Error:
            with self._lock:
                self._unwritten.extendleft(reversed(rows[: self._most - len(self._unwritten)]))
            raise

    def close(self) -> None:
        """Write what is left, if that is possible, and close the file."""
        with suppress(sqlite3.Error):
            self.write()
        self._db.close()

    def _put(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _load(self, form: str) -> None:
        kept: dict[str, str] = dict(self._db.execute("SELECT key, value FROM meta"))
        if kept.get("form") != form:
            self._db.execute("DELETE FROM samples")
            self._db.execute("DELETE FROM meta")
            self._put("form", form)
            return
        self._fields = tuple(json.loads(kept.get("fields", "[]")))
        size = 8 + 4 * int(np.prod(self._shape, dtype=int))
        query = "SELECT number, sample FROM samples ORDER BY number DESC LIMIT ?"
        for number, raw in self._db.execute(query, (self._most,)):
            if len(raw) == size:
                self._count = max(self._count, number + 1)
                x = np.frombuffer(raw, "<f4", offset=8).astype(np.float32).reshape(self._shape)
                self._kept.appendleft((x, float(np.frombuffer(raw, "<f8", count=1)[0])))
