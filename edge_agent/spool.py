"""The device's disk: its outbox, its residual, its model. One SQLite file a task.

`synchronous=FULL`: when a method returns, a power cut does not take it back. An update and the
residual that it leaves behind are written in one transaction. The boot number is drawn when the
file is made, so a replaced card is a new boot. A file of an older version is brought up in one
transaction; one of a newer version is refused.
"""

import secrets
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, TypeAlias

from schemas.errors import ConfigError
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.window import SPAN

SCHEMA: Final = 2

_MIGRATIONS: Final = (
    # 0 -> 1: a new file
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE updates (seq INTEGER PRIMARY KEY, sent INTEGER NOT NULL, message BLOB NOT NULL);
CREATE TABLE chunks (blob TEXT, number INTEGER, data BLOB, PRIMARY KEY (blob, number));
""",
    # 1 -> 2: tensors that never leave the device
    "CREATE TABLE local (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;",
)

Base: TypeAlias = tuple[Epoch, ModelVersion]


@dataclass(frozen=True, slots=True)
class OpenUpdate:
    """An update that has no Receipt yet."""

    seq: Seq
    sent: bool
    message: bytes


def fresh_boot() -> Boot:
    """Draw a boot number: 1 to 2^32 - 1."""
    return Boot(secrets.randbits(32) or 1)


class Spool:
    """One task's file. Safe to call from several threads, one at a time."""

    def __init__(self, path: Path, *, new_boot: Callable[[], Boot] = fresh_boot) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as exc:
            remedy = f"{path.parent} cannot hold a spool ({exc}); choose a folder of one's own"
            raise ConfigError("state_dir", remedy) from exc
        self._lock = Lock()
        try:
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._prepare(path, new_boot)
        except sqlite3.DatabaseError as exc:
            self._db.close()
            remedy = f"{path} is not a spool ({exc}); move it away to begin as a new boot"
            raise ConfigError("state_dir", remedy) from exc
        self.boot = Boot(int.from_bytes(self._get("boot") or b"", "big"))

    def _prepare(self, path: Path, new_boot: Callable[[], Boot]) -> None:
        version: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            remedy = f"{path} was written by a newer fedmq (schema {version}); update this one"
            raise ConfigError("state_dir", remedy)
        if version == SCHEMA:
            return
        steps = "".join(_MIGRATIONS[version:])
        self._db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version={SCHEMA};")
        if version == 0:
            boot = new_boot().to_bytes(4, "big")
            self._db.execute("INSERT INTO meta VALUES ('boot', ?)", (boot,))
        self._db.execute("COMMIT")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # -- small values --------------------------------------------------------------------

    def _get(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def _set(self, key: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    def _number(self, key: str) -> int:
        return int.from_bytes(self._get(key) or b"", "big")

    def load(self, key: str) -> bytes | None:
        """Read a named value: `spec`, `manifest`, `channel`, `params`, `residual`."""
        with self._lock:
            return self._get(key)

    def save(self, **values: bytes) -> None:
        """Write named values in one transaction."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            for key, value in values.items():
                self._set(key, value)

    # -- the outbox ----------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether another number may be opened: at most 64, from the oldest open one on."""
        with self._lock:
            row = self._db.execute("SELECT min(seq) FROM updates").fetchone()
            return row[0] is None or self._number("seq") - row[0] + 1 < SPAN

    def put(
        self,
        write: Callable[[Seq], bytes],
        *,
        base: Base,
        residual: bytes | None,
        replaces: Seq | None = None,
        local: Mapping[str, bytes] | None = None,
    ) -> Seq | None:
        """Add an update and its residual, in the place of the one that it contains.

        Returns its number, or None when the one to replace has been sent meanwhile: both would be
        folded, so nothing is written.

        Args:
            write: gives the message for the number it gets.
            base: what it was trained from.
            residual: what encoding left behind; None leaves the stored one as it is.
            replaces: an update from the same base that this one contains.
            local: tensors that stay on the device, as they are after this training.
        """
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            seq = Seq(self._number("seq") + 1)
            if replaces is not None:
                query = "DELETE FROM updates WHERE seq = ? AND sent = 0"
                if not self._db.execute(query, (replaces,)).rowcount:
                    return None
                self._set("superseded", (self._number("superseded") + 1).to_bytes(8, "big"))
            self._db.execute("INSERT INTO updates VALUES (?, 0, ?)", (seq, write(seq)))
            self._set("seq", seq.to_bytes(8, "big"))
            self._set("trained", base[0].to_bytes(4, "big") + base[1].to_bytes(4, "big"))
            if residual is not None:
                self._set("residual", residual)
            rows = list((local or {}).items())
            self._db.executemany("INSERT OR REPLACE INTO local VALUES (?, ?)", rows)
        return seq

    def local(self) -> dict[str, bytes]:
        """Tensors that never leave this device, by name."""
        with self._lock:
            return dict(self._db.execute("SELECT name, data FROM local").fetchall())

    @property
    def trained(self) -> Base | None:
        """The base of the newest update."""
        raw = self.load("trained")
        if raw is None:
            return None
        numbers = int.from_bytes(raw[:4], "big"), int.from_bytes(raw[4:], "big")
        return Epoch(numbers[0]), ModelVersion(numbers[1])

    @property
    def created(self) -> int:
        """Updates ever created in this boot."""
        with self._lock:
            return self._number("seq")

    @property
    def superseded(self) -> int:
        """Updates that were replaced before they were ever sent."""
        with self._lock:
            return self._number("superseded")

    def is_unsent(self, seq: Seq) -> bool:
        """Whether an update waits and was never given to the network."""
        with self._lock:
            query = "SELECT 1 FROM updates WHERE seq = ? AND sent = 0"
            return self._db.execute(query, (seq,)).fetchone() is not None

    def open_updates(self) -> list[OpenUpdate]:
        """Updates without a Receipt, oldest first."""
        with self._lock:
            rows = self._db.execute("SELECT seq, sent, message FROM updates ORDER BY seq")
            return [OpenUpdate(Seq(seq), bool(sent), data) for seq, sent, data in rows]

    def mark_sent(self, seq: Seq) -> bool:
        """Note that an update is about to be sent; False when it was replaced meanwhile."""
        with self._lock:
            query = "UPDATE updates SET sent = 1 WHERE seq = ?"
            return bool(self._db.execute(query, (seq,)).rowcount)

    def settle(self, is_settled: Callable[[Seq], bool]) -> list[Seq]:
        """Forget the *sent* updates that a Receipt settles; an unsent one cannot be settled."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            rows = self._db.execute("SELECT seq FROM updates WHERE sent = 1 ORDER BY seq")
            done = [Seq(seq) for (seq,) in rows.fetchall() if is_settled(Seq(seq))]
            self._db.executemany("DELETE FROM updates WHERE seq = ?", [(seq,) for seq in done])
        return done

    # -- a model in pieces ---------------------------------------------------------------

    def add_chunks(self, blob: str, chunks: Iterable[tuple[int, bytes]]) -> None:
        """Keep chunks of a blob, and drop those of any other."""
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute("DELETE FROM chunks WHERE blob != ?", (blob,))
            rows = [(blob, number, data) for number, data in chunks]
            self._db.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)", rows)

    def chunks(self, blob: str) -> dict[int, bytes]:
        """The chunks of a blob that are here."""
        with self._lock:
            query = "SELECT number, data FROM chunks WHERE blob = ?"
            return dict(self._db.execute(query, (blob,)).fetchall())

    def drop_chunks(self) -> None:
        """Forget all chunks."""
        with self._lock:
            self._db.execute("DELETE FROM chunks")
