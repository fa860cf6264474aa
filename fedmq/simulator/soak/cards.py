"""A device's card: put back as it was some time ago, replaced, torn; and read by a witness.

Cards are copied only while their device is dead. What was open on a card that goes, and is not on
the one that comes, left with it: it is written down, so that nobody calls it lost.
"""

import json
import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias

Identity: TypeAlias = tuple[str, int, int]
"""(device, boot, seq)."""


def open_on(spool: Path, device: str) -> set[Identity]:
    """Updates that wait for their Receipt; empty for a card that holds no spool yet."""
    if not spool.exists():
        return set()
    with closing(sqlite3.connect(spool, timeout=10)) as db, suppress(sqlite3.OperationalError):
        rows = db.execute("SELECT boot, seq FROM updates").fetchall()
        return {(device, boot, seq) for boot, seq in rows}
    return set()


def adopted_on(spool: Path) -> bytes | None:
    """The manifest of the model that the device has, as it stands on the card."""
    if not spool.exists():
        return None
    with closing(sqlite3.connect(spool, timeout=10)) as db, suppress(sqlite3.OperationalError):
        row = db.execute("SELECT value FROM meta WHERE key = 'manifest'").fetchone()
        return None if row is None else bytes(row[0])
    return None


def copy_card(state: Path, image: Path) -> None:
    """Keep the card as it is now."""
    shutil.rmtree(image, ignore_errors=True)
    if state.exists():
        shutil.copytree(state, image)


def put_card(state: Path, image: Path | None, removed: Path, device: str, spool: Path) -> None:
    """Put another card in: an image of before, or an empty one; note what leaves with the old."""
    before = open_on(spool, device)
    shutil.rmtree(state, ignore_errors=True)
    if image is not None and image.exists():
        shutil.copytree(image, state)
    gone = before - open_on(spool, device)
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
