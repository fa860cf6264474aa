"""Folds a log again with the very same fold, and compares every version with what was recorded.

Pure: stored entries in, findings out. Three uses of one machine: an audit (every published version
has the digest that was recorded), a time machine (stop at a version), and a history without some
devices: beside the honest fold runs a shadow of it in which they weigh nothing. The shadow admits
what the log admitted, buffers where the log buffered: after every entry it is given the honest
bases, and where the log rolls back it takes its own parameters of that version. So the direct
contribution of the devices is gone, not what others learnt from it.

Refuses (ConfigError) a log that begins in the middle, and entries that another arithmetic folded.
What was erased cannot be folded again: it is said, and digests after it prove nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from aggregator.fold import FOLD_ID, Decided, Fold
from aggregator.publishing import model_now, params_of
from aggregator.segments import Logged
from aggregator.state import Changes, TaskState
from schemas.delta import Delta, Dense
from schemas.errors import ConfigError, FedmqError, InvariantError
from schemas.log import Arrived, DeviceErased, Entry, EntryId, ModelSet, SpecSet, from_fields
from schemas.names import DeviceId
from schemas.params import Params, model_digest
from schemas.task import TaskSpec


@dataclass(frozen=True, slots=True)
class Different:
    """A version whose digest is not the one that was recorded: the first 16 hex digits of each."""

    version: int
    entry_id: EntryId
    recorded: str
    folded: str


@dataclass(slots=True)
class Findings:
    """What a replay has found.

    Attributes:
        entries: folded.
        updates: of those that went into the model.
        same: published versions that have the recorded digest.
        different: those that have another, oldest first.
        unrecorded: of which no record is kept.
        gone: entries in whose place a tombstone stands; `first_gone`: the first of them.
        gaps: erased devices whose updates left no tombstone: a sentence each.
        notes: what else a reader must know: a sentence each.
    """

    entries: int = 0
    updates: int = 0
    same: int = 0
    different: list[Different] = field(default_factory=list)
    unrecorded: int = 0
    gone: int = 0
    first_gone: EntryId | None = None
    gaps: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def erased(self) -> list[str]:
        """Why digests cannot be reproduced from some entry on: a sentence each."""
        if not self.gone:
            return self.gaps
        count = f"{self.gone} updates were erased, the first at entry {self.first_gone}"
        return [f"{count}: from there on digests cannot be reproduced exactly", *self.gaps]


@dataclass(frozen=True, slots=True)
class Model:
    """The parameters of a version, all of them: float32, shape (spec.params.size,)."""

    version: int
    spec: TaskSpec
    params: Params

    @property
    def digest(self) -> str:
        """The first 16 hex digits of its digest."""
        return model_digest(self.spec.params.digest, self.params).hex()[:16]


class Replay:
    """Folds stored entries, from wherever `begin` begins.

    Args:
        begin: makes the state before the first entry, afresh every time.
        recorded: version -> the first 16 hex digits of its digest.
        without: devices whose contributions weigh nothing in the shadow.
        observer: is told of every update that the honest fold decides.
        until: stop at this version.
    """

    def __init__(
        self,
        begin: Callable[[], TaskState],
        *,
        recorded: Mapping[int, str],
        without: frozenset[DeviceId] = frozenset(),
        observer: Callable[[Decided], None] | None = None,
        until: int | None = None,
    ) -> None:
        self.findings = Findings()
        self.changes = Changes()
        self.honest = Fold(begin(), observer=observer)
        self._shadow = Fold(begin(), silenced=without) if without else None
        self._recorded = recorded
        self._until = until
        self._seen: set[int] = set()
        self._heard: set[DeviceId] = set()
        self._blobs: dict[int, bytes] = {}
        self.reached: Model | None = None
        if until is not None and self.done:
            self.reached = self._model_at(until, Changes())

    @property
    def version(self) -> int:
        """The model's version now."""
        return self.honest.state.model.version

    @property
    def done(self) -> bool:
        """Whether the version that was asked for is reached."""
        begun = self.honest.state.spec is not None
        return begun and self._until is not None and self.version >= self._until

    def apply(self, logged: Logged) -> None:
        """Fold one stored entry. Raises ConfigError: it cannot be folded here."""
        if logged.gone:
            self.findings.gone += 1
            self.findings.first_gone = self.findings.first_gone or logged.id
            return
        entry = self._read(logged)
        self._mind_erasure(entry)
        try:
            self.honest.apply(entry)
        except FedmqError as exc:
            raise ConfigError("log", f"entry {entry.id} cannot be folded: {exc}") from exc
        self.changes = self.honest.take_changes()
        self._compare(entry.id)
        mine = self._follow(entry)
        self.findings.entries += 1
        self.findings.updates = self.honest.state.tally.folded
        if self.done and self.reached is None and self._until is not None:
            self.reached = self._model_at(self._until, mine)

    @property
    def model(self) -> Model:
        """The model that was asked for: at `until`, else where the log ends. Raises ConfigError."""
        if self._until is None:
            return self._model_at(self.version, Changes())
        if self.reached is None:
            remedy = f"{self._until} is not reached: the log ends at version {self.version}"
            raise ConfigError("until", remedy)
        return self.reached

    # -- honest ----------------------------------------------------------------------------

    def _read(self, logged: Logged) -> Entry:
        try:
            body = from_fields(logged.fields)
        except (InvariantError, msgspec.DecodeError, KeyError, ValueError) as exc:
            remedy = f"entry {logged.id} cannot be read ({exc}); did a newer fedmq write it?"
            raise ConfigError("log", remedy) from exc
        if self.honest.state.spec is None and not isinstance(body, SpecSet):
            remedy = f"begins in the middle, with entry {logged.id}; give --from an older export"
            raise ConfigError("log", remedy)
        return Entry(logged.id, body)

    def _mind_erasure(self, entry: Entry) -> None:
        """An erased device's updates are gone from the log, with or without a tombstone."""
        match entry.body:
            case Arrived(device=device):
                self._heard.add(device)
            case DeviceErased(device) if device not in self._heard:
                self.findings.gaps.append(
                    f"{device} was erased at entry {entry.id}: what it sent before is not in the "
                    "log any more, and digests since cannot be reproduced exactly"
                )

    def _compare(self, entry_id: EntryId) -> None:
        for version, release in self.changes.releases.items():
            if version in self._seen:
                continue
            self._seen.add(version)
            folded = release.named.model_digest.hex()[:16]
            recorded = self._recorded.get(version)
            if recorded is None:
                self.findings.unrecorded += 1
            elif recorded == folded:
                self.findings.same += 1
            else:
                different = Different(version, entry_id, recorded, folded)
                self.findings.different.append(different)

    # -- without some ----------------------------------------------------------------------

    def _follow(self, entry: Entry) -> Changes:
        """Let the shadow fold the same entry; what has changed of the model that is asked for."""
        shadow = self._shadow
        if shadow is None:
            return self.changes
        body = entry.body
        if isinstance(body, ModelSet):
            entry = Entry(entry.id, ModelSet(self._own(body), body.version))
        shadow.apply(entry)
        bases = shadow.state.bases
        bases.clear()
        bases.update(self.honest.state.bases)
        if shadow.state.model.version != self.version:
            msg = (
                f"the shadow is at version {shadow.state.model.version}, the log at {self.version}"
            )
            raise InvariantError(msg)
        changes = shadow.take_changes()
        for publication in changes.publications:
            self._blobs[publication.manifest.version] = publication.blob
        for version in [v for v in self._blobs if v not in shadow.state.releases]:
            del self._blobs[version]
        return changes

    def _own(self, body: ModelSet) -> bytes:
        """The shadow's own parameters of the version that the log goes back to."""
        blob = self._blobs.get(body.version)
        if blob is None:
            self.findings.notes.append(
                f"the log goes back to version {body.version}, which was made before this replay "
                "begins: from there on the model holds what the devices had contributed until then"
            )
            return body.params
        return blob

    # -- out -------------------------------------------------------------------------------

    def _model_at(self, version: int, changes: Changes) -> Model:
        fold = self._shadow or self.honest
        state = fold.state
        if state.spec is None:
            raise ConfigError("log", "is empty: there is no model yet")
        spec = state.spec
        for publication in changes.publications:
            if publication.manifest.version == version:
                return Model(version, spec, params_of(publication.blob))
        if state.model.version != version:
            remedy = f"{version} cannot be had: this history holds {state.model.version} next"
            raise ConfigError("until", remedy)
        return Model(version, spec, model_now(state, spec).copy())


def check_fold(file: str, fold_id: str) -> None:
    """Raises ConfigError: what another arithmetic folded cannot be compared."""
    if fold_id != FOLD_ID:
        remedy = f"was folded by {fold_id}, this fedmq folds by {FOLD_ID}: use the older one"
        raise ConfigError(file, remedy)


def digests(records: Mapping[Any, bytes]) -> dict[int, str]:
    """The digests in records of versions (JSON)."""
    return {int(key): msgspec.json.decode(raw)["digest"] for key, raw in records.items()}


def length(delta: Delta) -> float:
    """The Euclidean length of a delta; for people, not for the fold."""
    if isinstance(delta, Dense):
        return _length(delta.values)
    places, where = np.unique(delta.indices, return_inverse=True)
    sums = np.zeros(places.size, np.float64)
    np.add.at(sums, where, delta.values)
    return _length(sums)


def _length(values: Any) -> float:
    total: float = 0.0
    for start in range(0, values.size, 1 << 18):
        part = values[start : start + (1 << 18)].astype(np.float64)
        total += float(np.sum(part * part))
    return float(total**0.5)


__all__ = [
    "Different",
    "Findings",
    "Model",
    "Replay",
    "check_fold",
    "digests",
    "length",
]
