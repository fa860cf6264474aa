"""The fold: log entries in, model versions out.

    model v = fold(origin, log entries in order)

Pure and deterministic: no clock (time is the entry's id), no socket, no randomness. Everything it
depends on is the origin and the entries. What it wants said or stored it writes into `Changes`;
the service commits those. Where commits fall does not change what is folded.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, TypeAlias

import numpy as np

from aggregator.admission import Rejected, Standing, admit, codec_id_of, read_header
from aggregator.strategies import Advanced, Contribution, State, Strategy, strategy_for
from schemas.errors import InvariantError
from schemas.log import HEAD_BYTES, Arrived, Entry, EntryId, SpecSet, Tick
from schemas.messages import Manifest, ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion
from schemas.outcomes import FOLDED, outcome_name
from schemas.params import Params, base_digest, model_digest
from schemas.task import TaskSpec, spec_from_json
from schemas.window import SeqWindow

FOLD_ID: Final = "fold-1"
"""The arithmetic. Changed arithmetic is a new name, recorded in every checkpoint."""

ORIGIN: Final = EntryId()
"""The cursor before the first entry."""

Sender: TypeAlias = tuple[DeviceId, Boot]


@dataclass(slots=True)
class Tally:
    """What has happened to this task's updates since its origin."""

    folded: int = 0
    duplicates: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    staleness_sum: int = 0
    staleness_max: int = 0
    payload_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """The last update of a device that was decided: what its Receipt will name."""

    boot: Boot
    seq: int
    outcome: int


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A refused update, for people to look at: `data` is bounded by HEAD_BYTES."""

    id: EntryId
    device: DeviceId
    reason: str
    detail: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Publication:
    """A version that leaves the server: its manifest and its blob."""

    manifest: Manifest
    blob: bytes


@dataclass(slots=True)
class Changes:
    """What has changed since the last commit."""

    vectors: set[str] = field(default_factory=set)
    senders: set[Sender] = field(default_factory=set)
    answers: dict[DeviceId, Answer] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)
    events: list[dict[str, object]] = field(default_factory=list)
    spec: bytes | None = None
    publication: Publication | None = None


@dataclass(slots=True)
class TaskState:
    """Everything that the next entry's effect depends on.

    Attributes:
        epoch: the task's epoch.
        cursor: the id of the last entry folded.
        spec: None until the first SpecSet.
        model: the strategy's state; `vectors["params"]` is the model.
        bases: published versions that may serve as a base -> their short digest.
        views: published models, for strategies that need them.
        published_ms: when the newest was published.
        buffered_ms: when the oldest contribution in the buffer came; 0 when it is empty.
        windows: the settled numbers of every (device, boot).
        tally: the counters.
    """

    epoch: Epoch
    model: State
    cursor: EntryId = ORIGIN
    spec: TaskSpec | None = None
    bases: dict[int, int] = field(default_factory=dict)
    views: dict[int, Params] = field(default_factory=dict)
    published_ms: int = 0
    buffered_ms: int = 0
    windows: dict[Sender, SeqWindow] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)


def origin_state(epoch: Epoch, params: Params) -> TaskState:
    """The state before the first entry."""
    return TaskState(epoch, State(0, {"params": params.copy()}))


class Fold:
    """Applies entries to a TaskState that it owns, and collects the Changes."""

    def __init__(self, state: TaskState) -> None:
        self.state = state
        self.changes = Changes()
        self._strategy: Strategy | None = None
        self._standing: Standing | None = None
        if state.spec is not None:
            self._obey(state.spec)

    def take_changes(self) -> Changes:
        """Hand over what has changed since the last call."""
        changes, self.changes = self.changes, Changes()
        return changes

    def apply_all(self, entries: Iterable[Entry]) -> None:
        """Fold entries in order."""
        for entry in entries:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        """Fold one entry. Raises InvariantError when the log runs backwards."""
        state = self.state
        if entry.id <= state.cursor:
            msg = f"entry {entry.id} does not follow {state.cursor}"
            raise InvariantError(msg)
        match entry.body:
            case Arrived() as arrived:
                self._arrive(entry.id, arrived)
            case SpecSet(json):
                self._respecify(json)
            case Tick():
                self._flush_if_due(entry.id.ms)
        state.cursor = entry.id
        self._publish_if_due(entry.id.ms)

    def next_deadline_ms(self) -> int | None:
        """When a Tick would change something, in milliseconds since 1970; None for never."""
        state, spec = self.state, self.state.spec
        if spec is None:
            return None
        due: list[int] = []
        if state.model.buffered and spec.strategy.flush_after_s:
            due.append(state.buffered_ms + round(spec.strategy.flush_after_s * 1000))
        if self._unpublished and spec.publish.seconds:
            due.append(state.published_ms + round(spec.publish.seconds * 1000))
        return min(due, default=None)

    # -- specification ---------------------------------------------------------------------

    def _obey(self, spec: TaskSpec) -> None:
        self._strategy = strategy_for(spec.strategy)
        self._standing = Standing(
            spec=spec,
            codec_id=codec_id_of(spec),
            size=spec.params.size,
            spec_digest=spec.params.short_digest,
            epoch=self.state.epoch,
            version=self.state.model.version,
            bases=self.state.bases,
        )

    def _respecify(self, json: bytes) -> None:
        """Follow another TaskSpec from here on; what waits in the buffer is folded first."""
        state = self.state
        spec = spec_from_json(json)
        renamed = state.spec is not None and spec.params.digest != state.spec.params.digest
        if renamed or spec.params.size != state.model.vectors["params"].size:
            msg = "a task cannot change its tensors"
            raise InvariantError(msg)
        if self._strategy is not None:
            state.model, _ = self._strategy.flush(state.model)
        old = state.model
        fresh = strategy_for(spec.strategy).init(old.vectors["params"])
        kept = {name: old.vectors.get(name, vector) for name, vector in fresh.vectors.items()}
        state.model = State(old.version, kept)
        state.buffered_ms = 0
        state.spec = spec
        self._obey(spec)
        if self._strategy is not None and self._strategy.views and not state.views:
            state.bases.clear()  # the strategy mixes against published models: publish one now
        self.changes.vectors.update(old.vectors.keys() | kept.keys())
        self.changes.spec = json

    # -- arrivals --------------------------------------------------------------------------

    def _arrive(self, entry_id: EntryId, arrived: Arrived) -> None:
        if self._standing is None:
            msg = "an update before the first specification"
            raise InvariantError(msg)
        header = read_header(arrived, self._standing.spec.max_update_bytes)
        if isinstance(header, Rejected):
            self._bury(entry_id, arrived, header)
            nameless = Answer(Boot(0), 0, header.reason)
            self.changes.answers.setdefault(arrived.device, nameless)
            return
        sender = (arrived.device, header.boot)
        window = self._window(sender, entry_id)
        known = window.outcome(header.seq)
        if known:
            self.state.tally.duplicates += 1
            self.changes.answers[arrived.device] = Answer(header.boot, header.seq, known)
            return
        outcome = self._decide(entry_id, arrived, header)
        self.state.windows[sender] = window.settle(header.seq, outcome)
        self.changes.senders.add(sender)
        self.changes.answers[arrived.device] = Answer(header.boot, header.seq, outcome)

    def _window(self, sender: Sender, entry_id: EntryId) -> SeqWindow:
        window = self.state.windows.get(sender)
        if window is None:
            window = SeqWindow()
            self._tell(entry_id, "joined", device=sender[0], boot=sender[1])
        return window

    def _decide(self, entry_id: EntryId, arrived: Arrived, header: ModelUpdate) -> int:
        """Admit and fold, or refuse: one outcome byte."""
        standing = self._standing
        assert standing is not None  # noqa: S101 - _arrive has looked
        verdict = admit(arrived, header, standing)
        if isinstance(verdict, Rejected):
            self._bury(entry_id, arrived, verdict)
            return int(verdict.reason)
        self._fold(entry_id.ms, verdict)
        tally = self.state.tally
        tally.folded += 1
        tally.staleness_sum += verdict.staleness
        tally.staleness_max = max(tally.staleness_max, verdict.staleness)
        tally.payload_bytes += len(header.payload)
        return FOLDED

    def _fold(self, ms: int, contribution: Contribution) -> None:
        state = self.state
        assert self._strategy is not None  # noqa: S101 - set together with the standing
        state.model, outcome = self._strategy.fold(state.model, contribution, state.views)
        self.changes.vectors |= outcome.changed
        if isinstance(outcome, Advanced):
            self._advanced()
        elif not state.buffered_ms:
            state.buffered_ms = ms

    def _advanced(self) -> None:
        state = self.state
        state.buffered_ms = 0
        assert state.spec is not None  # noqa: S101 - nothing folds before a specification
        oldest = state.model.version - state.spec.strategy.max_staleness
        newest = max(state.bases, default=0)
        for version in [v for v in state.bases if v < oldest and v != newest]:
            del state.bases[version]
        if self._standing is not None:
            self._standing = replace(self._standing, version=state.model.version)

    def _bury(self, entry_id: EntryId, arrived: Arrived, rejected: Rejected) -> None:
        name = outcome_name(rejected.reason)
        counts = self.state.tally.rejected
        counts[name] = counts.get(name, 0) + 1
        head = bytes(arrived.data[:HEAD_BYTES])
        letter = DeadLetter(entry_id, arrived.device, name, rejected.detail, head)
        self.changes.dead.append(letter)
        self._tell(entry_id, "rejected", device=arrived.device, reason=name, why=rejected.detail)

    def _tell(self, entry_id: EntryId, what: str, **facts: object) -> None:
        event = {"event": what, "at_ms": entry_id.ms, "version": self.state.model.version}
        self.changes.events.append(event | facts)

    # -- time ------------------------------------------------------------------------------

    def _flush_if_due(self, ms: int) -> None:
        state, spec = self.state, self.state.spec
        if spec is None or self._strategy is None or not spec.strategy.flush_after_s:
            return
        if not state.model.buffered:
            return
        if ms < state.buffered_ms + round(spec.strategy.flush_after_s * 1000):
            return
        state.model, outcome = self._strategy.flush(state.model)
        if isinstance(outcome, Advanced):
            self.changes.vectors |= outcome.changed
            self._advanced()

    @property
    def _unpublished(self) -> int:
        """Versions since the newest published one; 1 when none was."""
        state = self.state
        return state.model.version - max(state.bases) if state.bases else 1

    def _publish_if_due(self, ms: int) -> None:
        state, spec = self.state, self.state.spec
        if spec is None or not self._unpublished:
            return
        waited = ms - state.published_ms
        timely = spec.publish.seconds and waited >= round(spec.publish.seconds * 1000)
        if not state.bases or self._unpublished >= spec.publish.every or timely:
            self._publish(ms, spec)

    def _publish(self, ms: int, spec: TaskSpec) -> None:
        state = self.state
        version = state.model.version
        params = state.model.vectors["params"]
        blob = params.astype("<f4", copy=False).tobytes()
        digest = model_digest(spec.params.digest, params)
        state.bases[version] = base_digest(digest)
        state.published_ms = ms
        self._keep_view(version, blob)
        manifest = Manifest(
            epoch=state.epoch,
            version=ModelVersion(version),
            model_digest=digest,
            spec_digest=spec.params.digest,
            codec=0,
            blob=f"k{state.epoch}-{version}",
            blob_digest=sha256(blob).digest(),
            blob_bytes=len(blob),
            chunk_bytes=spec.publish.chunk_bytes,
        )
        self.changes.publication = Publication(manifest, blob)
        self._tell(state.cursor, "published", digest=digest.hex()[:16], bytes=len(blob))

    def _keep_view(self, version: int, blob: bytes) -> None:
        """Keep the published model for strategies that mix against it, and drop the oldest."""
        state = self.state
        keep = self._strategy.views if self._strategy else 0
        if keep:
            state.views[version] = np.frombuffer(blob, dtype="<f4").astype(np.float32, copy=False)
            self.changes.vectors.add(f"view:{version}")
        for old in sorted(state.views)[: max(0, len(state.views) - keep)]:
            del state.views[old]
            if keep:
                state.bases.pop(old, None)
            self.changes.vectors.add(f"view:{old}")


__all__ = [
    "FOLD_ID",
    "Answer",
    "Changes",
    "DeadLetter",
    "Fold",
    "Publication",
    "Sender",
    "Tally",
    "TaskState",
    "origin_state",
]
