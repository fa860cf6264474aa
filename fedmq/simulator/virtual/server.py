"""The server in virtual time: the production fold, fed with entries as production writes them.

Nothing here decides anything: admission, folding, publication and the hint of how many are to
train are the fold's. An entry's id is virtual milliseconds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from aggregator.fold import Decided, Fold
from aggregator.state import Publication, TaskState, origin_state
from schemas.log import Arrived, Body, Entry, EntryId, Guided, SpecSet, Tick
from schemas.messages import Manifest
from schemas.names import DeviceId, Epoch, shard_of
from schemas.pace import PaceHint
from schemas.params import Params
from schemas.task import TaskSpec, spec_from_json, spec_to_json

EPOCH = Epoch(1)

Guide: TypeAlias = Callable[[Params, int], Params | None]
"""(a published model, its version) -> the server's own step from it, if it has examples."""


@dataclass(frozen=True, slots=True)
class Published:
    """A version that devices may have.

    Attributes:
        manifest: of it.
        params: float32, shape (spec.size,), read-only.
        at_s: when it was published.
    """

    manifest: Manifest
    params: Params
    at_s: float

    @property
    def version(self) -> int:
        """Its number."""
        return self.manifest.version

    @property
    def digest(self) -> str:
        """Of the model, 16 hexadecimal digits."""
        return self.manifest.model_digest.hex()[:16]


class Server:
    """One task.

    Attributes:
        published: the newest version that everybody may have.
        decided: what became of the newest update; None: it was a duplicate.
        spec: as devices are told it.
        entries: of the log, from the first on, when they are kept.
    """

    published: Published

    def __init__(
        self, spec: TaskSpec, params: Params, *, guide: Guide | None = None, keep: bool = False
    ) -> None:
        self.decided: Decided | None = None
        self.entries: list[Entry] = []
        self.spec = spec
        self._guide = guide
        self._keep = keep
        self._fold = Fold(origin_state(EPOCH, params), observer=self._observe)
        self._write(0.0, SpecSet(spec_to_json(spec)))

    @property
    def state(self) -> TaskState:
        """What was folded so far."""
        return self._fold.state

    @property
    def version(self) -> int:
        """Of the model, published or not."""
        return self._fold.state.model.version

    @property
    def hint(self) -> PaceHint | None:
        """Which share of the fleet is to train; None: all."""
        return self._fold.state.pacing.said

    @property
    def finished(self) -> bool:
        """Whether the task is done by itself."""
        return self._fold.state.phase == "finished"

    def arrive(self, now_s: float, device: DeviceId, data: bytes) -> Decided | None:
        """Fold a message; what became of it."""
        self.decided = None
        self._write(now_s, Arrived(device, shard_of(device), data, len(data)))
        return self.decided

    def tick(self, now_s: float) -> None:
        """Let what waits for time happen."""
        self._write(now_s, Tick())

    def due_s(self) -> float | None:
        """When a tick would change something; None: never."""
        ms = self._fold.next_deadline_ms()
        return None if ms is None else (ms - 1) / 1000

    def _write(self, now_s: float, body: Body) -> None:
        cursor, ms = self._fold.state.cursor, 1 + round(now_s * 1000)  # 0 ms means never
        later = ms > cursor.ms
        at = EntryId(ms, 0) if later else EntryId(cursor.ms, cursor.serial + 1)
        entry = Entry(at, body)
        if self._keep:
            self.entries.append(entry)
        self._fold.apply(entry)
        changes = self._fold.take_changes()
        if changes.spec is not None:
            self.spec = spec_from_json(changes.spec)
        if changes.publications:
            self.published = _published(changes.publications[-1], now_s)
            self._judge(now_s)

    def _judge(self, now_s: float) -> None:
        """Write the server's own step from the newest version into the log, as its judge does."""
        if self._guide is None:
            return
        delta = self._guide(self.published.params, self.published.version)
        if delta is not None:
            self._write(now_s, Guided(self.published.version, delta.astype("<f4").tobytes()))

    def _observe(self, decided: Decided) -> None:
        self.decided = decided


def _published(publication: Publication, now_s: float) -> Published:
    return Published(publication.manifest, np.frombuffer(publication.blob, "<f4"), now_s)


def refold(entries: Iterable[Entry], params: Params, epoch: Epoch = EPOCH) -> list[tuple[int, str]]:
    """Fold a recorded log from its first entry: (version, digest) of all that was published.

    Args:
        entries: in order, the first specification among them.
        params: the whole initial model.
        epoch: of the task at its origin.
    """
    fold, found = Fold(origin_state(epoch, params)), []
    for entry in entries:
        fold.apply(entry)
        manifests = [each.manifest for each in fold.take_changes().publications]
        found += [(int(each.version), each.model_digest.hex()[:16]) for each in manifests]
    return found
