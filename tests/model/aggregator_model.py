"""The aggregator, one step at a time: hold, load, read, commit. Its fold is the real one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from aggregator.announce import Shelf, moves, records
from aggregator.checkpoint import (
    changed_devices,
    changed_vectors,
    changed_windows,
    read_small_state,
    restore,
    sender_to_text,
    small_state,
)
from aggregator.fold import Fold
from aggregator.state import TaskState
from schemas.names import Seq
from schemas.outcomes import FOLDED
from schemas.watch import Pressure
from schemas.window import SeqWindow
from tests.model.bugs import Bugs
from tests.model.names import origin
from tests.model.redis_model import Data, RedisModel

BATCH = 3


def load(data: Data) -> TaskState:
    """The state at the last commit."""
    if not data.small:
        return origin()
    assert "params" in data.vectors, "there is a cursor, and no model"
    return restore(read_small_state(data.small), data.vectors, data.windows, data.devices)


def image(state: TaskState) -> dict[str, object]:
    """Everything of a state, so that two can be compared bit for bit."""
    return {
        "small": msgspec.json.decode(small_state(state, ())),
        "vectors": {name: vector.tobytes() for name, vector in state.model.vectors.items()},
        "windows": dict(state.windows),
        "devices": {name: msgspec.json.encode(r) for name, r in sorted(state.devices.items())},
    }


class AggregatorModel:
    """One aggregator process after the other."""

    def __init__(self, name: str, redis: RedisModel, bugs: Bugs) -> None:
        self._name, self._redis, self._bugs = name, redis, bugs
        self._lives = 0
        self.crash()

    def crash(self) -> None:
        """The process is gone; the next one has another token."""
        self._lives += 1
        self._token = f"{self._name}{self._lives}"
        self._drop()

    def _drop(self) -> None:
        self._holding = False
        self._fold: Fold | None = None
        self._pending = False
        self._ahead = False
        self._marks: dict[str, bytes] = {}

    def step(self) -> bool:
        """Do the next thing; False when there is nothing to do."""
        if not self._holding:
            return self._hold()
        if self._fold is None:
            self._load()
        elif self._marks:
            self._write_marks()
        elif self._pending:
            self._commit(self._fold)
        else:
            return self._read(self._fold)
        return True

    def _hold(self) -> bool:
        holder = self._redis.data.holder
        self._holding = holder in {"", self._token}
        if self._holding and not holder:
            self._redis.write(holder=self._token)
        return self._holding

    def _load(self) -> None:
        data = self._redis.data
        self._fold = Fold(load(data))
        small = read_small_state(data.small) if data.small else None
        self._shelf = Shelf() if small is None else Shelf(small.living, small.kept)
        self._serial, self._run_id = data.serial, self._redis.run_id

    def _read(self, fold: Fold) -> bool:
        if self._run_id != self._redis.run_id and "commit_not_compared" not in self._bugs:
            self._drop()  # a read that waits is broken when the server goes
            return True
        fresh = [e for e in self._redis.data.log if e.id > fold.state.cursor][:BATCH]
        with self._dedup():
            fold.apply_all(fresh)
        self._pending = bool(fresh)
        return self._pending

    @contextmanager
    def _dedup(self) -> Iterator[None]:
        if "dedup_by_highest_number" not in self._bugs:
            yield
            return

        def by_highest(window: SeqWindow, seq: Seq) -> int:
            return FOLDED if seq <= window.top else 0

        right = SeqWindow.outcome
        SeqWindow.outcome = by_highest  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            SeqWindow.outcome = right  # type: ignore[method-assign]

    # -- the commit ----------------------------------------------------------------------------

    def _commit(self, fold: Fold) -> None:
        """One compare-and-set."""
        redis, state = self._redis, fold.state
        if "cursor_before_commit" in self._bugs and not self._ahead:
            redis.write(small=small_state(state, self._shelf.living, self._shelf.kept))
            self._ahead = True
            return
        if not self._may_commit(redis.data):
            self._drop()
            return
        changes = fold.take_changes()
        moved = moves(state, self._shelf)
        self._shelf, self._serial = moved.after, self._serial + 1
        with self._dedup():
            said = list(records(state, changes, moved, Pressure()))
        windows = changed_windows(state, changes.senders)
        if "marks_outside_commit" in self._bugs:
            self._marks, windows = windows, {}
        gone = {sender_to_text(sender) for sender in changes.gone_senders}
        data = redis.data
        redis.write(
            serial=self._serial,
            small=small_state(state, self._shelf.living, self._shelf.kept),
            vectors=_merged(data.vectors, changed_vectors(state, changes)),
            windows={k: v for k, v in (data.windows | windows).items() if k not in gone},  # type: ignore[operator]
            devices=data.devices | changed_devices(state, changes),  # type: ignore[operator]
            manifest=b"" if state.published is None else state.published.manifest,
            outbox=(
                *data.outbox,
                *(((self._serial, number), record) for number, record in enumerate(said, 1)),
            ),
        )
        self._pending = self._ahead = False

    def _may_commit(self, data: Data) -> bool:
        if "commit_not_compared" in self._bugs:
            return True
        there = (data.holder, data.serial, self._redis.run_id)
        return there == (self._token, self._serial, self._run_id)

    def _write_marks(self) -> None:
        self._redis.write(windows=dict(self._redis.data.windows) | self._marks)
        self._marks = {}


def _merged(old: Mapping[str, bytes], changed: Mapping[str, bytes | None]) -> dict[str, bytes]:
    both = {**old, **changed}
    return {name: data for name, data in both.items() if data is not None}
