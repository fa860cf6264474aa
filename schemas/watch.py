"""What people watch: the JSON below `metrics`, `versions`, `events`, `state`, `busy`, `lorawan`.

Nothing here is needed to take part. A reader passes over fields that it does not know; fields may
be added, and keep their meaning for ever.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec

from schemas.task import Phase

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
AtMs: TypeAlias = Annotated[int, msgspec.Meta(ge=0, description="milliseconds since 1970")]
EventName: TypeAlias = Literal[
    "allowed",
    "banned",
    "erased",
    "finished",
    "held_back",
    "ignored",
    "joined",
    "moved",
    "paused",
    "proposed",
    "published",
    "rejected",
    "rolled_back",
    "running",
]
ReleaseStatus: TypeAlias = Literal["candidate", "published", "held", "withdrawn"]


class Pressure(msgspec.Struct, frozen=True):
    """How the bridges fare with a task's log. No topic of its own: part of `metrics`.

    Attributes:
        busy: why devices are asked to wait (`slow`, `full`, `behind`); empty: they are not.
        busy_times: how often they were asked to.
        busy_s: for how long in all, in seconds, until the last time ended.
        dropped: messages that were not taken because the log is as large as it may be.
    """

    busy: str = ""
    busy_times: Count = 0
    busy_s: float = 0.0
    dropped: Count = 0


class Metrics(msgspec.Struct, frozen=True):
    """`metrics`, retained: where the task stands. Counters run since the task's origin.

    Attributes:
        phase: of the task's life.
        epoch: of the task.
        version: folds that made the model.
        published: the newest version that everybody may have; null before the first.
        candidate: the version that waits for a judgement; null: none.
        buffered: updates in the fold's buffer.
        updates_folded: updates that went into the model.
        updates_rejected: updates that did not, by reason.
        duplicates_dropped: messages that had been settled before.
        staleness_mean: of the folded updates, in versions.
        staleness_max: of the folded updates, in versions.
        payload_bytes: of the folded updates.
        devices: that were ever heard.
        spools: pairs of device and boot that were ever heard.
        at_ms: time of the newest folded entry, in milliseconds since 1970.
        busy: why devices are asked to wait just now (`slow`, `full`, `behind`); empty: no need.
        busy_times: how often they were asked to, as the bridge has counted.
        busy_s: for how long in all, in seconds, until the last time ended.
        dropped: messages that were not taken because the log was as large as it may be; the devices
            send them again.
    """

    phase: Phase
    epoch: Count
    version: Count
    published: Count | None
    candidate: Count | None
    buffered: Count
    updates_folded: Count
    updates_rejected: dict[str, Count]
    duplicates_dropped: Count
    staleness_mean: float
    staleness_max: Count
    payload_bytes: Count
    devices: Count
    spools: Count
    at_ms: AtMs
    busy: str = ""
    busy_times: Count = 0
    busy_s: float = 0.0
    dropped: Count = 0


class VersionRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version that was drawn for publication, and how good it was found.

    Attributes:
        version: its number.
        status: `candidate` (waits for a judgement), `published`, `held` (back) or `withdrawn` (by
            a rollback).
        at_ms: when it was drawn, in milliseconds since 1970.
        digest: the first 16 hex digits of model_digest.
        bytes: of its blob: what a device fetches that has nothing.
        updates_folded: updates in it, since the task's origin.
        devices: that have reported how good they found it.
        metrics: their means, weighted by examples; empty while fewer than evaluate.min_devices.
        examples: held-out examples behind the means.
        server: what the server measured.
        server_examples: on how many examples.
        diff_bytes: of the diff from the publication before; 0: there is none, and left out.
    """

    version: Count
    status: ReleaseStatus
    at_ms: AtMs
    digest: str
    bytes: Count
    updates_folded: Count
    devices: Count
    metrics: dict[str, float]
    examples: Count
    server: dict[str, float]
    server_examples: Count
    diff_bytes: Count = 0


class Versions(msgspec.Struct, frozen=True):
    """`versions`, retained: those whose parameters are kept.

    Attributes:
        epoch: of the task.
        versions: oldest first.
    """

    epoch: Count
    versions: tuple[VersionRecord, ...]


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """`events`, not retained: something has happened. What does not apply is left out.

    Attributes:
        event: what.
        at_ms: time of the log's entry, in milliseconds since 1970.
        version: folds that had made the model.
        why: a sentence.
        device: whom it is about.
        boot: of a spool that was heard for the first time.
        reason: why an update was refused, as in docs/wire.md, section 7.
        digest: of a version, the first 16 hex digits of model_digest.
        bytes: of a published blob.
        held: the version that was held back.
        to: the version that the model was rolled back to.
        epoch: that the task has moved to.
    """

    event: EventName
    at_ms: AtMs
    version: Count
    why: str = ""
    device: str = ""
    boot: Count | None = None
    reason: str = ""
    digest: str = ""
    bytes: Count | None = None
    held: Count | None = None
    to: Count | None = None
    epoch: Count | None = None


class DeviceState(msgspec.Struct, frozen=True):
    """`state/{device}`, retained: a device's birth, farewell or will.

    Attributes:
        online: whether it is there.
        boot: under which it makes updates now.
    """

    online: bool
    boot: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0


class Busy(msgspec.Struct, frozen=True):
    """`busy`, retained: devices should send less for a while. Empty: as usual.

    Attributes:
        why: a word: slow, full, behind, away.
        pause_s: how long a device should rest between tries, in seconds.
        at_ms: since when, in milliseconds since 1970.
    """

    why: str
    pause_s: Annotated[float, msgspec.Meta(ge=0, le=3600)]
    at_ms: AtMs


class Aired(msgspec.Struct, frozen=True):
    """`lorawan`, retained: which publications there were while a LoRaWAN adapter looked.

    A radio names its model by version, diffs go by serial number: with this note a new adapter
    knows what an earlier one has sent.

    Attributes:
        epoch: the task's.
        serials: pairs of a version and its serial number, ascending.
    """

    epoch: Count
    serials: Annotated[list[tuple[Count, Count]], msgspec.Meta(max_length=256)] = []
