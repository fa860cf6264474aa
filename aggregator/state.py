"""What the fold knows, and what it has changed: values, and nothing that decides.

`TaskState` is everything that the next entry's effect depends on. `Changes` is what has to be
written and said at the next commit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, TypeAlias

import msgspec

from aggregator.pacing import Pacing
from aggregator.strategies import State
from schemas.evaluation import Judgement
from schemas.lattice import LEVELS, Ints
from schemas.log import EntryId
from schemas.messages import Manifest
from schemas.names import Boot, DeviceId, Epoch
from schemas.params import Params
from schemas.task import Phase, TaskSpec
from schemas.watch import Event, EventName, ReleaseStatus
from schemas.window import SeqWindow
from schemas.wire import decode_manifest

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
    weight: float = 0.0


class DeviceRecord(msgspec.Struct):
    """What is known of one device.

    Attributes:
        first_ms: when its first update came, by the log's clock; 0 before that.
        last_ms: when its last one came.
        folded: updates that were folded.
        rejected: updates that were refused.
        duplicates: updates that came again.
        bytes_up: of all its messages, as they came in.
        weight: the sum of its contributions' weights.
        staleness_sum: of its folded updates.
        base: the newest base it has trained from; -1 before that.
        banned: whether nothing is taken from it.
        tags: its groups, sorted.
        boots: of its spools, oldest first: those whose settled numbers are kept.
    """

    first_ms: int = 0
    last_ms: int = 0
    folded: int = 0
    rejected: int = 0
    duplicates: int = 0
    bytes_up: int = 0
    weight: float = 0.0
    staleness_sum: int = 0
    base: int = -1
    banned: bool = False
    tags: tuple[str, ...] = ()
    boots: tuple[int, ...] = ()


class Release(msgspec.Struct, frozen=True):
    """A version that has left the server, or waits to, and whose parameters are kept.

    Attributes:
        version: its number.
        at_ms: when it was proposed, by the log's clock.
        manifest: as it is published, encoded.
        status: `published`, `candidate` (waits for a judgement), `held` (back) or `withdrawn`.
        updates: folded until then.
        judgement: how good it was found.
        floats: the blob with its parameters; empty: the manifest's own.
    """

    version: int
    at_ms: int
    manifest: bytes
    status: ReleaseStatus
    updates: int
    judgement: Judgement = Judgement()
    floats: str = ""

    @property
    def named(self) -> Manifest:
        """Its manifest as a value."""
        return _decoded(self.manifest)

    @property
    def params_blob(self) -> str:
        """The blob that holds its parameters as float32, whatever the devices fetch."""
        return self.floats or self.named.blob

    @property
    def blobs(self) -> tuple[str, ...]:
        """All that must be kept of it."""
        if not self.floats:
            return (self.named.blob,)
        manifest = self.named
        return (self.floats, manifest.blob, *filter(None, [manifest.origin]))


@lru_cache(maxsize=1024)
def _decoded(manifest: bytes) -> Manifest:
    """Read a manifest; the few releases of a task are looked at again and again."""
    return decode_manifest(manifest)


@dataclass(frozen=True, slots=True)
class Answer:
    """The last update of a device that was decided: what its Receipt will name.

    `window` stands in for the kept one of a device of which none is kept.
    """

    boot: Boot
    seq: int
    outcome: int
    window: SeqWindow | None = None


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
    """A version whose parameters are to be kept: its manifest, and float32 bytes by their name."""

    manifest: Manifest
    blob: bytes
    name: str


NO_DIFFS: Final = (0,) * LEVELS
"""Of no level is there a diff."""


@dataclass(slots=True)
class Lattice:
    """Where the published model walks: V = W0 + 2^-m q, with m for every tensor that travels.

    Attributes:
        origin: what travels of W0, float32, shape (wire_size,).
        name: the blob of the whole W0.
        drawn: whether devices draw W0 themselves: then it is not retained.
        q: int32, shape (wire_size,).
        exponents: m.
        keyframe: both as they are published.
        chunk_bytes: of every blob, for as long as this lattice is walked on.
        first: the publication with which the ladder of diffs begins.
        halves: level -> the diff that waits for its second half.
        rungs: (first publication, level) -> bytes, of every diff that is retained.
        newest: bytes of the newest diff of each level; 0: there is none.
    """

    origin: Params
    name: str
    drawn: bool
    q: Ints
    exponents: tuple[int, ...]
    keyframe: bytes
    chunk_bytes: int
    first: int
    halves: dict[int, bytes] = field(default_factory=dict)
    rungs: dict[tuple[int, int], int] = field(default_factory=dict)
    newest: tuple[int, ...] = NO_DIFFS


@dataclass(slots=True)
class Changes:
    """What has changed since the last commit.

    Attributes:
        vectors: names of vectors that are not as before.
        senders: whose windows are not as before; `gone_senders`: which are forgotten.
        devices: whose records are not as before.
        releases: versions whose record is not as before, as it is now.
        answers: the newest answer for every device that was decided.
        dead: refused updates.
        events: what happened, for people.
        spec: the specification to publish.
        publications: what is to be kept, oldest first.
        beside: other blobs that are to be kept, by name.
        renamed: blobs that were kept under another name -> under which they are from now on.
        model: whether the manifest for everybody is another one.
        candidate: whether the manifest for canary devices is another one.
        pace: whether the hint of how many are to train is another one.
        pins: devices that are held at a version, or no longer (None).
        erased: devices of which nothing may be left.
        allowed: devices that were banned until now: their receipt says so, and is cleared.
    """

    vectors: set[str] = field(default_factory=set)
    senders: set[Sender] = field(default_factory=set)
    gone_senders: set[Sender] = field(default_factory=set)
    devices: set[DeviceId] = field(default_factory=set)
    releases: dict[int, Release] = field(default_factory=dict)
    answers: dict[DeviceId, Answer] = field(default_factory=dict)
    dead: list[DeadLetter] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    spec: bytes | None = None
    publications: list[Publication] = field(default_factory=list)
    beside: dict[str, bytes] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    model: bool = False
    candidate: bool = False
    pace: bool = False
    pins: dict[DeviceId, int | None] = field(default_factory=dict)
    erased: set[DeviceId] = field(default_factory=set)
    allowed: set[DeviceId] = field(default_factory=set)

    @property
    def blob_bytes(self) -> int:
        """What waits to be kept, in bytes."""
        beside = sum(map(len, self.beside.values()))
        return beside + sum(len(each.blob) for each in self.publications)


@dataclass(slots=True)
class TaskState:
    """Everything that the next entry's effect depends on.

    Attributes:
        epoch: the task's epoch.
        model: the strategy's state; `vectors["params"]` is what travels of the model.
        cursor: the id of the last entry folded.
        spec: None until the first SpecSet.
        phase: whether the task runs.
        started_ms: when the first entry was written.
        fixed: the whole initial model when not all of it travels; its other parts never change.
        bases: versions that devices may have -> their short digest.
        views: published models, for strategies that need them.
        good: what travels of the last published model, when a worse one is rolled back.
        codecs: ids of the codecs that the task has asked for so far: late updates are taken too.
        sealed: whether the task has ever asked for checksums: late updates may have one.
        proposed: the newest version that was published or proposed; None: one is due at once.
        published_ms: when that was.
        buffered_ms: when the oldest contribution in the buffer came; 0 when it is empty.
        windows: the settled numbers of every (device, boot).
        devices: what is known of every device.
        releases: published versions whose parameters are kept, and the one that waits.
        candidate: the version that waits for a judgement.
        pins: tag (or device) -> the version that those who bear it are held at.
        pinned: devices that are held -> at which version.
        lattice: where the published model walks; None: it is what was folded.
        serial: of the next publication on a lattice.
        best: the best figure of [finish].metric so far; `since_best`: published versions since.
        tally: the counters.
        pacing: how many are to train at once.
    """

    epoch: Epoch
    model: State
    cursor: EntryId = ORIGIN
    spec: TaskSpec | None = None
    phase: Phase = "running"
    started_ms: int = 0
    fixed: Params | None = None
    bases: dict[int, int] = field(default_factory=dict)
    views: dict[int, Params] = field(default_factory=dict)
    good: Params | None = None
    codecs: tuple[int, ...] = ()
    sealed: bool = False
    proposed: int | None = None
    published_ms: int = 0
    buffered_ms: int = 0
    windows: dict[Sender, SeqWindow] = field(default_factory=dict)
    devices: dict[DeviceId, DeviceRecord] = field(default_factory=dict)
    releases: dict[int, Release] = field(default_factory=dict)
    candidate: int | None = None
    pins: dict[str, int] = field(default_factory=dict)
    pinned: dict[DeviceId, int] = field(default_factory=dict)
    lattice: Lattice | None = None
    serial: int = 0
    best: float | None = None
    since_best: int = 0
    tally: Tally = field(default_factory=Tally)
    pacing: Pacing = field(default_factory=Pacing)

    @property
    def published(self) -> Release | None:
        """The newest version that everybody may have."""
        return newest_published(self.releases)


def newest_published(releases: Mapping[int, Release]) -> Release | None:
    """The newest release that everybody may have; None before the first."""
    numbers = [v for v, release in releases.items() if release.status == "published"]
    return releases[max(numbers)] if numbers else None


def origin_state(epoch: Epoch, params: Params) -> TaskState:
    """The state before the first entry."""
    return TaskState(epoch, State(0, {"params": params.copy()}))


class Ledger:
    """The state that is folded, and what has changed of it since somebody took the changes."""

    def __init__(self, state: TaskState) -> None:
        self.state = state
        self.changes = Changes()

    def take_changes(self) -> Changes:
        """Hand over what has changed since the last call."""
        changes, self.changes = self.changes, Changes()
        return changes

    def tell(self, at_ms: int, what: EventName, **facts: Any) -> None:
        """Note an event, for people; the facts are fields of Event."""
        self.changes.events.append(Event(what, at_ms, self.state.model.version, **facts))

    def device(self, device: DeviceId) -> DeviceRecord:
        """A device's record, which the caller is about to change."""
        self.changes.devices.add(device)
        return self.state.devices.setdefault(device, DeviceRecord())
