"""Where a region's round stands, on the disk: who starts again goes on, and sends nothing twice."""

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from fedmq.region.merging import Kept


def remembered(where: Path | None) -> Kept | None:
    """What was noted last; None when there is nothing that can be read."""
    if where is None:
        return None
    try:
        return msgspec.json.decode(where.read_bytes(), type=Kept)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def remember(where: Path | None, kept: Kept | None) -> None:
    """Note it, or forget; whole or not at all, and after a power cut, too. Raises OSError."""
    if where is None:
        return
    where.parent.mkdir(parents=True, exist_ok=True)
    if kept is None:
        where.unlink(missing_ok=True)
    else:
        beside = where.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(kept))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(where)
    with suppress(PermissionError):  # Windows opens no folder
        folder = os.open(where.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
