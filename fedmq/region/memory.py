"""Where a region's round began, on the disk: who starts again goes on, and loses nothing."""

import os
from pathlib import Path

import msgspec

from fedmq.region.merging import Begun


def remembered(where: Path | None) -> Begun | None:
    """What was noted last; None when there is nothing that can be read."""
    if where is None:
        return None
    try:
        return msgspec.json.decode(where.read_bytes(), type=Begun)
    except (OSError, msgspec.DecodeError):
        return None


def remember(where: Path | None, begun: Begun) -> None:
    """Note it; whole or not at all. Raises OSError."""
    if where is None:
        return
    where.parent.mkdir(parents=True, exist_ok=True)
    beside = where.with_suffix(".new")
    with beside.open("wb") as file:
        file.write(msgspec.json.encode(begun))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(where)
