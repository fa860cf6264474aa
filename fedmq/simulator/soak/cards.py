"""A device's card: put back as it was some time ago, replaced, torn; and read by a witness.

A witness changes nothing. The log that a power cut has left on a card is for the device to recover:
SQLite would do so for whoever opens the card first. So a spool is opened read-only, beside its
living device, and of a dead device's card a copy is read.

Cards are copied only while their device is dead. What was open on a card that goes, and is not on
the one that comes, left with it: it is written down, so that nobody calls it lost.
"""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

Identity: TypeAlias = tuple[str, int, int]
"""(device, boot, seq)."""


def open_on(spool: Path, device: str) -> set[Identity]:
    """Updates that wait for their Receipt; empty for a card that holds no spool yet."""
    return {(device, boot, seq) for boot, seq in _read(spool, "SELECT boot, seq FROM updates")}


def adopted_on(spool: Path) -> bytes | None:
    """The manifest of the model that the device has, as it stands on the card."""
    for (value,) in _read(spool, "SELECT value FROM meta WHERE key = 'manifest'"):
        return bytes(value)
    return None


def _read(spool: Path, query: str) -> list[Any]:
    """What a query finds; nothing where there is no such table yet."""
    if not spool.exists():
        return []
    uri = f"{spool.absolute().as_uri()}?mode=ro"  # who only reads neither recovers nor clears a log
    with closing(sqlite3.connect(uri, uri=True, timeout=10)) as db:
        try:
            return db.execute(query).fetchall()
        except sqlite3.OperationalError as exc:
            if "no such table" in str(exc):
                return []
            raise


def _open_in(state: Path | None, device: str, spool: str) -> set[Identity]:
    """What waits on a card that nobody uses: read from a copy."""
    if state is None or not state.exists():
        return set()
    with TemporaryDirectory(prefix="fedmq-card-") as folder:
        copy = Path(shutil.copytree(state, Path(folder) / "card"))
        return open_on(copy / spool, device)


def copy_card(state: Path, image: Path) -> None:
    """Keep the card as it is now."""
    shutil.rmtree(image, ignore_errors=True)
    if state.exists():
        shutil.copytree(state, image)


def put_card(state: Path, image: Path | None, removed: Path, device: str, spool: Path) -> None:
    """Put another card in: an image of before, or an empty one; note what leaves with the old."""
    before = _open_in(state, device, spool.name)
    gone = before - _open_in(image, device, spool.name)
    shutil.rmtree(state, ignore_errors=True)
    if image is not None and image.exists():
        shutil.copytree(image, state)
    with removed.open("a") as file:
        for who in sorted(gone):
            file.write(json.dumps(who) + "\n")


def tear(spool: Path, noise: bytes) -> None:
    """Half a frame at the end of the write-ahead log: a write that the power cut through."""
    log = spool.with_name(spool.name + "-wal")
    if log.exists():
        with log.open("ab") as file:
            file.write(noise)


def read_removed(file: Path) -> set[Identity]:
    """What left with a card."""
    if not file.exists():
        return set()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {(str(device), int(boot), int(seq)) for device, boot, seq in lines}
