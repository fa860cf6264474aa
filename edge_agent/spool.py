"""The device's disk: its outbox, its residual, its model. One SQLite file a task.

`synchronous=FULL`: when a method returns, a power cut does not take it back. An update and the
residual that it leaves behind are written in one transaction; the residual from before the newest
one is kept until that is settled, and taken up again, in one transaction with the settlement, when
it was refused (docs/decisions/0017). A boot number is drawn for every
*life* (a spool that is opened), and written down with the life's first update: whatever image of
the disk a process wakes up with, it makes no identity that was made before
(docs/decisions/0013). Updates of earlier lives stay as they are until they are settled.

A file of an older version is brought up in one transaction; one of a newer version is refused.
"""

import secrets
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Final, TypeAlias
from zlib import crc32

from edge_agent import disk
from edge_agent.spool_residual import Left, Residuals, Restore
from edge_agent.spool_schema import SCHEMA, bring_up, check, version_of
from schemas.errors import ConfigError
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.window import SPAN

Base: TypeAlias = tuple[Epoch, ModelVersion]

LIVES_MAX: Final = 16
"""A life makes updates only while the oldest open update is of one of the newest 16 lives: a server
forgets all but a device's newest 64 boots."""

BOOTS_KEPT: Final = 64
"""Boot numbers of earlier lives that are not drawn again."""

LOG_BYTES: Final = 4 * disk.MB
"""What an empty log may keep of the disk where there is no bound."""

_THE_DISK: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    }
)
_NO_PLACE: Final = frozenset({sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY})


class DiskFull(OSError):  # noqa: N818 - a state of the disk, told as `disk_full`
    """The disk takes nothing now: it is full, fails or is held. What was committed is there."""


@dataclass(frozen=True, slots=True)
class OpenUpdate:
    """An update that has no Receipt yet."""

    boot: Boot
    seq: Seq
    sent: bool
    message: bytes


def fresh_boot() -> Boot:
    """Draw a boot number: 1 to 2^32 - 1."""
    return Boot(secrets.randbits(32) or 1)


class Spool:
    """One task's file, for one life. Safe to call from several threads, one at a time.

    Every method raises DiskFull when the disk does not take or give what it must.

    Args:
        path: of the file.
        new_boot: draws a boot number.
        disk_mb: megabytes that the file and its log may take; 0: no bound.

    Attributes:
        boot: of the updates that this life makes.
        previous: the newest identity that an earlier life has made; None: there was none.
        disk_mb: as given.

    Raises:
        ConfigError: the file cannot be a spool, or takes more than it may.
    """

    def __init__(
        self, path: Path, *, new_boot: Callable[[], Boot] = fresh_boot, disk_mb: int = 0
    ) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as exc:
            raise _no_place(path, exc) from exc
        self._lock = Lock()
        self._life: int | None = None
        self._seq = 0
        self._residuals = Residuals(self._get, self._set, self._drop)
        self.disk_mb = disk_mb
        try:
            self._prepare(path)
            self._bound(path)
            self.previous = self._newest()
            self.boot = self._drawn(new_boot)
        except (sqlite3.DatabaseError, UnicodeError) as exc:  # SQLite's message may quote garbage
            self._db.close()
            code = _primary_code(exc)
            if code in _NO_PLACE:
                raise _no_place(path, exc) from exc
            if code in _THE_DISK:
                raise DiskFull(f"{path}: {exc}") from exc
            remedy = f"{path} is not a spool ({exc}); move it away to begin as a new boot"
            raise ConfigError("state_dir", remedy) from exc
        except ConfigError:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        version = version_of(self._db)
        if version > SCHEMA:
            remedy = f"{path} was written by a newer fedmq (schema {version}); update this one"
            raise ConfigError("state_dir", remedy)
        bring_up(self._db)
        check(self._db)

    def _bound(self, path: Path) -> None:
        """Let SQLite itself stop at the bound."""
        bound = self.disk_mb * disk.MB
        self._db.execute(f"PRAGMA journal_size_limit={disk.log_bytes(bound) or LOG_BYTES}")
        if not bound:
            return
        self._db.execute(f"PRAGMA wal_autocheckpoint={disk.checkpoint_pages(bound)}")
        pages = disk.file_pages(bound)
        if self._pragma(f"max_page_count={pages}") > pages:
            needed = -(-self._pragma("page_count") * disk.PAGE * 8 // 5 // disk.MB)
            remedy = f"{path} takes more than its part of {self.disk_mb} MB: give {needed}"
            raise ConfigError("disk_mb", f"{remedy} or move it away")

    def _newest(self) -> tuple[Boot, Seq] | None:
        boot, seq = self._number("boot"), self._number("seq")
        return (Boot(boot), Seq(seq)) if seq else None

    def _drawn(self, new_boot: Callable[[], Boot]) -> Boot:
        """A boot number that no earlier life has used, as far as this disk remembers."""
        used = self._boots()
        while (boot := new_boot()) in used:
            pass
        return boot

    def _boots(self) -> list[int]:
        raw = self._get("boots") or b""
        return [int.from_bytes(raw[at : at + 4], "big") for at in range(0, len(raw), 4)]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """One thread at a time; what the disk does not take has a name."""
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as exc:
                if _primary_code(exc) in _THE_DISK:
                    raise DiskFull(str(exc)) from exc
                raise

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing, and on the disk at the end."""
        with self._held():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # -- small values --------------------------------------------------------------------

    def _get(self, key: str) -> bytes | None:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def _set(self, key: str, value: bytes) -> None:
        query = "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)"
        self._db.execute(query, (key, value, crc32(value)))

    def _drop(self, key: str) -> None:
        self._db.execute("DELETE FROM meta WHERE key = ?", (key,))

    def _number(self, key: str) -> int:
        return int.from_bytes(self._get(key) or b"", "big")

    def _count(self, key: str) -> None:
        self._set(key, (self._number(key) + 1).to_bytes(8, "big"))

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def load(self, key: str) -> bytes | None:
        """Read a named value.

        `spec`, `manifest`, `channel`, `params`, `residual`, `before` (the residual from before the
        newest update), `allowance`; `bundle` and its digits, `bundle_digest`, and what went wrong
        with it, `bundle_refused` and `bundle_loading` (`edge_agent.bundles`); of a model that walks
        on a lattice its place, `q` and `exponents`, and its `origin` where that was fetched.
        """
        with self._held():
            return self._get(key)

    def bytes_of(self, key: str) -> int:
        """How long a named value is, without reading it; 0: there is none."""
        with self._held():
            return self._length(key)

    def _length(self, key: str) -> int:
        query = "SELECT length(value) FROM meta WHERE key = ?"
        row = self._db.execute(query, (key,)).fetchone()
        return 0 if row is None else int(row[0])

    def save(self, forget: Collection[str] = (), /, **values: bytes) -> None:
        """Forget named values and write others, in one transaction."""
        with self._transaction():
            for key in forget:
                self._drop(key)
            for key, value in values.items():
                self._set(key, value)

    # -- the outbox ----------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether this life may open another number.

        At most 64 are open; within a life all lie in the 64 that end at the newest; and the oldest
        is of one of the newest LIVES_MAX lives.
        """
        with self._held():
            query = "SELECT count(*), min(life) FROM updates"
            number, oldest_life = self._db.execute(query).fetchone()
            life = self._life or self._number("life") + 1
            query = "SELECT min(seq) FROM updates WHERE life = ?"
            (oldest,) = self._db.execute(query, (life,)).fetchone()
            return (
                number < SPAN
                and (oldest_life is None or life - oldest_life < LIVES_MAX)
                and (oldest is None or self._seq + 1 - oldest < SPAN)
            )

    @property
    def next_seq(self) -> Seq:
        """The number that the next update of this life gets."""
        return Seq(self._seq + 1)

    def left(self, replaces: Seq | None = None) -> Left:
        """The residual for one more update: when it replaces one, from before that."""
        with self._held():
            return self._residuals.left(replaces=replaces is not None)

    def put(
        self,
        write: Callable[[Seq], bytes],
        *,
        base: Base,
        residual: bytes | None,
        replaces: Seq | None = None,
        local: Mapping[str, bytes] | None = None,
        state: int | None = None,
    ) -> Seq | None:
        """Add an update and its residual, in the place of the one that it contains.

        Returns its number, or None when nothing is written: the one to replace has been sent
        meanwhile, so that both would be folded, or the residual was given back something.

        Args:
            write: gives the message for the number it gets, under this life's boot.
            base: what it was trained from.
            residual: what encoding left behind; None leaves the stored one as it is.
            replaces: an update of this life, from the same base, that this one contains.
            local: tensors that stay on the device, as they are after this training.
            state: of the residual with which it was encoded (`left`); None: whichever.
        """
        with self._transaction():
            if state not in {None, self._residuals.state}:
                return None
            seq, life = self.next_seq, self._life
            if replaces is not None:
                query = "DELETE FROM updates WHERE life = ? AND seq = ? AND sent = 0"
                if not self._db.execute(query, (life, replaces)).rowcount:
                    return None
                self._count("superseded")
            message = write(seq)
            if life is None:
                life = self._begin_life()
            row = (life, seq, self.boot, crc32(message), message)
            self._db.execute("INSERT INTO updates VALUES (?, ?, ?, 0, ?, ?)", row)
            self._count("created")
            self._set("boot", self.boot.to_bytes(4, "big"))
            self._set("seq", seq.to_bytes(8, "big"))
            self._set("trained", base[0].to_bytes(4, "big") + base[1].to_bytes(4, "big"))
            self._residuals.keep(residual, replaces=replaces is not None)
            rows = list((local or {}).items())
            self._db.executemany("INSERT OR REPLACE INTO local VALUES (?, ?)", rows)
        self._life, self._seq = life, seq
        return seq

    def _begin_life(self) -> int:
        """Write this life's boot down, with its first update."""
        boots = [*self._boots(), self.boot][-BOOTS_KEPT:]
        self._set("boots", b"".join(boot.to_bytes(4, "big") for boot in boots))
        self._count("life")
        return self._number("life")

    def local(self) -> dict[str, bytes]:
        """Tensors that never leave this device, by name."""
        with self._held():
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
        """Updates ever created on this disk."""
        with self._held():
            return self._number("created")

    @property
    def superseded(self) -> int:
        """Updates that were replaced before they were ever sent, on this disk."""
        with self._held():
            return self._number("superseded")

    def is_unsent(self, boot: Boot, seq: Seq) -> bool:
        """Whether an update waits and was never given to the network."""
        with self._held():
            query = "SELECT 1 FROM updates WHERE boot = ? AND seq = ? AND sent = 0"
            return self._db.execute(query, (boot, seq)).fetchone() is not None

    def open_updates(self) -> list[OpenUpdate]:
        """Updates without a Receipt, of whatever life, oldest first."""
        with self._held():
            query = "SELECT boot, seq, sent, message FROM updates ORDER BY life, seq"
            return [
                OpenUpdate(Boot(boot), Seq(seq), bool(sent), message)
                for boot, seq, sent, message in self._db.execute(query)
            ]

    def mark_sent(self, boot: Boot, seq: Seq, *, allowance: bytes | None = None) -> bool:
        """Note that an update is about to be sent, and what that leaves to be sent.

        False, and nothing is noted, when it was replaced meanwhile.
        """
        with self._transaction():
            query = "UPDATE updates SET sent = 1 WHERE boot = ? AND seq = ?"
            is_here = bool(self._db.execute(query, (boot, seq)).rowcount)
            if is_here and allowance is not None:
                self._set("allowance", allowance)
        return is_here

    def settle(
        self,
        boot: Boot,
        is_settled: Callable[[Seq], bool],
        *,
        refused: Seq | None = None,
        restore: Restore | None = None,
    ) -> list[Seq]:
        """Forget the *sent* updates of a boot that a Receipt settles, whichever life made them.

        An unsent one cannot be settled.

        Args:
            boot: whose numbers the Receipt speaks of.
            is_settled: whether it settles a number.
            refused: the number that it says was refused. If that is the newest update, the residual
                becomes again what it was before.
            restore: what was refused is added to the residual instead, whichever update it was.
        """
        with self._transaction():
            query = "SELECT seq FROM updates WHERE boot = ? AND sent = 1 ORDER BY seq"
            rows = self._db.execute(query, (boot,)).fetchall()
            done = [Seq(seq) for (seq,) in rows if is_settled(Seq(seq))]
            newest = self._newest()
            if refused in done:
                query = "SELECT message FROM updates WHERE boot = ? AND seq = ?"
                (message,) = self._db.execute(query, (boot, refused)).fetchone()
                is_newest = newest == (boot, refused)
                self._residuals.refused(message, restore, is_newest=is_newest)
            if newest is not None and newest[0] == boot and newest[1] in done:
                self._residuals.settled()
            query = "DELETE FROM updates WHERE boot = ? AND seq = ?"
            self._db.executemany(query, [(boot, seq) for seq in done])
        return done

    # -- the bound -----------------------------------------------------------------------

    @property
    def open_bytes(self) -> int:
        """What the open updates take of the disk, about."""
        with self._held():
            sizes = self._db.execute("SELECT length(message) FROM updates").fetchall()
            return sum(disk.on_pages(size) for (size,) in sizes)

    def room_for_model(self, chunks: int, params: int, lattice: int = 0) -> bool:
        """Whether chunks, and then the parameters in them, would fit below the bound.

        `lattice` is what the place on a lattice takes besides, in bytes.
        """
        if not self.disk_mb:
            return True
        free = self._free("params", *(["q"] if lattice else []))
        needed = disk.on_pages(params) + (disk.on_pages(lattice) if lattice else 0)
        return chunks + needed <= free

    def room_for_bundle(self, chunks: int, size: int) -> bool:
        """Whether chunks, and then the bundle in them, would fit below the bound."""
        return not self.disk_mb or chunks + disk.on_pages(size) <= self._free("bundle")

    def _free(self, *keys: str) -> int:
        """What may be written below the bound, in the place of these values and of all chunks."""
        with self._held():
            pages = self._pragma("max_page_count") - self._pragma("page_count")
            free = (pages + self._pragma("freelist_count")) * disk.PAGE
            query = "SELECT coalesce(sum(length(data)), 0) FROM chunks"
            free += int(self._db.execute(query).fetchone()[0])  # these are kept or make room
            return free + sum(map(self._length, keys))

    # -- a model in pieces ---------------------------------------------------------------

    def add_chunks(self, blob: str, chunks: Iterable[tuple[int, bytes]]) -> None:
        """Keep chunks of a blob, and drop those of any other."""
        self.keep_pieces({(blob, number): data for number, data in chunks}, of=[blob])

    def keep_pieces(self, pieces: Mapping[tuple[str, int], bytes], *, of: Collection[str]) -> None:
        """Keep chunks by blob and number, and drop those of any blob that is not in `of`."""
        with self._transaction():
            found = [blob for (blob,) in self._db.execute("SELECT DISTINCT blob FROM chunks")]
            others = [(blob,) for blob in found if blob not in of]
            self._db.executemany("DELETE FROM chunks WHERE blob = ?", others)
            rows = [(blob, number, data) for (blob, number), data in pieces.items()]
            self._db.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)", rows)

    def chunks(self, blob: str) -> dict[int, bytes]:
        """The chunks of a blob that are here."""
        return self.all_chunks().get(blob, {})

    def all_chunks(self) -> dict[str, dict[int, bytes]]:
        """All chunks that are here, by blob and number."""
        found: dict[str, dict[int, bytes]] = {}
        with self._held():
            for blob, number, data in self._db.execute("SELECT blob, number, data FROM chunks"):
                found.setdefault(blob, {})[number] = data
        return found

    def drop_chunks(self) -> None:
        """Forget all chunks."""
        with self._transaction():
            self._db.execute("DELETE FROM chunks")


def _primary_code(exc: Exception) -> int:
    """SQLite's result code without its details; 0 for an error that is our own."""
    return int(getattr(exc, "sqlite_errorcode", 0)) & 0xFF


def _no_place(path: Path, exc: Exception) -> ConfigError:
    remedy = f"{path.parent} cannot hold a spool ({exc}); choose a folder of one's own"
    return ConfigError("state_dir", remedy)
