"""The residual on the disk, and what it was before the newest update (docs/decisions/0017).

Two values of a spool, `residual` and `before`; an empty one stands for none. All of it is part
of a transaction that somebody else begins and ends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Restore: TypeAlias = Callable[[bytes, bytes | None], bytes | None]
"""(message of a refused update, residual) -> the residual with what was refused added to it; None:
it stays as it is."""


@dataclass(frozen=True, slots=True)
class Left:
    """What encoding has left behind so far: float32, None for nothing; and which state this is."""

    residual: bytes | None
    state: int


class Residuals:
    """What is left behind.

    Args:
        get: reads a value of the spool.
        put: writes one.
        drop: forgets one.

    Attributes:
        state: another number after whatever a refusal has changed.
    """

    def __init__(
        self,
        get: Callable[[str], bytes | None],
        put: Callable[[str, bytes], None],
        drop: Callable[[str], None],
    ) -> None:
        self.state = 0
        self._get = get
        self._put = put
        self._drop = drop

    def left(self, *, replaces: bool) -> Left:
        """For one more update: when it replaces the newest, from before that."""
        before = self._get("before") if replaces else None
        residual = self._get("residual") if before is None else before
        return Left(residual or None, self.state)

    def keep(self, residual: bytes | None, *, replaces: bool) -> None:
        """Keep what the newest update has left behind; None: its codec leaves nothing."""
        if residual is None:
            self._drop("before")
            return
        if not replaces or self._get("before") is None:
            self._put("before", self._get("residual") or b"")
        self._put("residual", residual)

    def settled(self) -> None:
        """The newest update is settled: nothing can be rolled back any more."""
        self._drop("before")

    def refused(self, message: bytes, restore: Restore | None, *, is_newest: bool) -> None:
        """Let it be what it is without an update that was refused."""
        before = self._get("before")
        if restore is not None:
            self._restore("residual", message, restore)
            if before is not None and not is_newest:  # for what may still replace the newest
                self._restore("before", message, restore)
        elif is_newest and before is not None:
            self.state += 1
            if before:
                self._put("residual", before)
            else:
                self._drop("residual")

    def _restore(self, key: str, message: bytes, restore: Restore) -> None:
        residual = restore(message, self._get(key) or None)
        if residual is not None:
            self.state += 1
            self._put(key, residual)
