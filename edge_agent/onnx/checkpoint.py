"""A round that is half done, on the disk: it goes on after a power cut, with the same bits.

    sha256    32 bytes, over all that follows
    length    4 bytes, big-endian, of the header
    header    JSON: the round it is of, how far it is, the generator's state
    arrays    little-endian float32: parameters, momentum, and adam's variance

Written beside, synced and renamed; what is not whole, or of another round, is not heeded. It is as
large as two or three times the parameters.
"""

import json
import logging
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_agent.trainers.sgd import Position

log = logging.getLogger("fedmq.agent")

HEADER_MAX: Final = 1 << 16
_LENGTH: Final = struct.Struct(">I")
_DIGEST: Final = 32


@dataclass(frozen=True, slots=True)
class Halfway:
    """Where a round was when it was written down.

    Attributes:
        position: of its descent.
        spent_s: seconds it had taken.
    """

    position: Position
    spent_s: float


class RoundOnDisk:
    """One round, from its start to its end, and where it was cut off before.

    Args:
        path: the file; None: nothing is kept.
        round_id: what makes a round the same one.
        clock: in seconds.
        every_s: seconds between two writes.
    """

    def __init__(
        self, path: Path | None, round_id: str, *, clock: Callable[[], float], every_s: float
    ) -> None:
        self._path, self._id = path, round_id
        self._clock, self._every_s = clock, every_s
        self._newest: Position | None = None
        self._began = self._written = 0.0
        self.spent_s = 0.0
        """Seconds that it had taken when it was cut off."""

    def begun(self, size: int, *, adam: bool) -> Position | None:
        """Where it was cut off, see `read_checkpoint`; None: it begins."""
        self._began = self._written = self._clock()
        halfway = None
        if self._path is not None:
            halfway = read_checkpoint(self._path, self._id, size, adam=adam)
        if halfway is None:
            return None
        log.info("round_resumed steps=%d", halfway.position.steps)
        self.spent_s = halfway.spent_s
        return halfway.position

    def note(self, at: Position) -> None:
        """A step was made; from time to time that is written."""
        if self._path is None:
            return
        self._newest = replace(at)  # what is no array moves on before the next step
        if self._clock() - self._written >= self._every_s:
            self.write()

    def write(self) -> None:
        """Write the newest step; where the disk takes nothing a power cut costs the round."""
        if self._path is None or self._newest is None:
            return
        self._written = self._clock()
        spent_s = self.spent_s + self._written - self._began
        try:
            write_checkpoint(self._path, self._id, Halfway(self._newest, spent_s))
        except OSError as exc:
            log.warning("checkpoint_failed error=%s", exc)

    def end(self) -> None:
        """Nothing is half done any more."""
        if self._path is not None:
            drop_checkpoint(self._path)


def write_checkpoint(path: Path, round_id: str, halfway: Halfway) -> None:
    """Replace what is there. Raises OSError."""
    at = halfway.position
    header = {
        "round": round_id,
        "size": at.params.size,
        "adam": at.variance is not None,
        "steps": at.steps,
        "epoch": at.epoch,
        "taken": at.taken,
        "shuffled": at.shuffled,
        "spent_s": halfway.spent_s,
    }
    told = json.dumps(header).encode()
    arrays = [a for a in (at.params, at.momentum, at.variance) if a is not None]
    raw = [array.astype("<f4").tobytes() for array in arrays]
    parts = [_LENGTH.pack(len(told)), told, *raw]
    digest = sha256()
    for part in parts:
        digest.update(part)
    beside = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with beside.open("wb") as file:
            file.write(digest.digest())
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        drop_checkpoint(beside)
        raise


def read_checkpoint(path: Path, round_id: str, size: int, *, adam: bool) -> Halfway | None:
    """Read what was written of this round; None where there is nothing whole of it.

    Args:
        path: the file.
        round_id: of the round that is to go on.
        size: of its parameters.
        adam: whether it has a variance.
    """
    arrays = 3 if adam else 2
    most = _DIGEST + _LENGTH.size + HEADER_MAX + 4 * size * arrays
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError:
        return None
    if len(raw) > most or sha256(raw[_DIGEST:]).digest() != raw[:_DIGEST]:
        return None
    try:
        (length,) = _LENGTH.unpack_from(raw, _DIGEST)
        begin = _DIGEST + _LENGTH.size
        told: dict[str, Any] = json.loads(raw[begin : begin + length])
        if (told["round"], told["size"], told["adam"]) != (round_id, size, adam):
            return None
        flat = np.frombuffer(raw, "<f4", offset=begin + length).astype(np.float32)
        parts = flat.reshape(arrays, size)
        position = Position(
            parts[0].copy(),
            parts[1].copy(),
            parts[2].copy() if adam else None,
            int(told["steps"]),
            int(told["epoch"]),
            int(told["taken"]),
            told["shuffled"],
        )
        return Halfway(position, float(told["spent_s"]))
    except (ValueError, TypeError, KeyError, struct.error, RecursionError):
        return None


def drop_checkpoint(path: Path) -> None:
    """Nothing is half done any more."""
    with suppress(OSError):
        path.unlink()
