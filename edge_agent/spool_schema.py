"""The tables of a spool, and how a file of an older version is brought up: in one transaction.

0   a new file
1   updates by number, under the one boot of the file
2   and tensors that never leave the device
3   updates by life and number, each with its boot; checksums of what is sent or believed
"""

import sqlite3
from typing import Final
from zlib import crc32

SCHEMA: Final = 3

_MIGRATIONS: Final = (
    # 0 -> 1
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE updates (seq INTEGER PRIMARY KEY, sent INTEGER NOT NULL, message BLOB NOT NULL);
CREATE TABLE chunks (blob TEXT, number INTEGER, data BLOB, PRIMARY KEY (blob, number));
""",
    # 1 -> 2
    "CREATE TABLE local (name TEXT PRIMARY KEY, data BLOB NOT NULL) WITHOUT ROWID;",
    # 2 -> 3: what one boot has made so far was its first life
    """
ALTER TABLE updates RENAME TO older;
CREATE TABLE updates (
    life INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    boot INTEGER NOT NULL,
    sent INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    message BLOB NOT NULL,
    PRIMARY KEY (life, seq)
);
INSERT INTO updates SELECT 1, seq, number(value), sent, crc32(message), message
    FROM older, meta WHERE key = 'boot';
DROP TABLE older;
INSERT INTO meta SELECT 'created', value FROM meta WHERE key = 'seq';
INSERT INTO meta SELECT 'life', x'01' FROM meta WHERE key = 'seq';
INSERT INTO meta SELECT 'boots', value FROM meta WHERE key = 'boot'
    AND EXISTS (SELECT 1 FROM meta WHERE key = 'seq');
ALTER TABLE meta ADD COLUMN crc INTEGER NOT NULL DEFAULT 0;
UPDATE meta SET crc = crc32(value);
""",
)


def version_of(db: sqlite3.Connection) -> int:
    """The schema of a file; 0: a new one."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def bring_up(db: sqlite3.Connection) -> None:
    """Make the tables what this version reads and writes."""
    version = version_of(db)
    if version >= SCHEMA:
        return
    db.create_function("number", 1, lambda raw: int.from_bytes(raw, "big"), deterministic=True)
    db.create_function("crc32", 1, crc32, deterministic=True)
    steps = "".join(_MIGRATIONS[version:])
    db.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version={SCHEMA}; COMMIT;")


def check(db: sqlite3.Connection) -> None:
    """Look at every page, value and open update. Raises sqlite3.DatabaseError."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    _compare(db, "SELECT key, crc, value FROM meta")
    _compare(db, "SELECT 'update ' || seq, crc, message FROM updates")


def _compare(db: sqlite3.Connection, query: str) -> None:
    for name, crc, value in db.execute(query):
        if not isinstance(value, bytes) or crc32(value) != crc:
            msg = f"{name} is garbled"
            raise sqlite3.DatabaseError(msg)
