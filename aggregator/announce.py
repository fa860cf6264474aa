"""What the world is told after a commit: records for the outbox. Pure.

Order matters: the specification, after the bundle that it names; receipts, which are for one device
each, before what the whole fleet is told; blobs before the manifests that name them; then the sweep
of what nobody needs, and what people watch.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from aggregator.checkpoint import LivingBlob
from aggregator.shelf import Blob, in_redis, on_broker
from aggregator.state import Answer, Changes, Release, TaskState
from aggregator.walking import oldest
from schemas.messages import Receipt
from schemas.names import DeviceId, ModelVersion
from schemas.outbox import Record, Say, Spread, Sweep
from schemas.seal import EVERYBODY, sealed_array
from schemas.watch import Metrics, Pressure, VersionRecord, Versions
from schemas.window import SeqWindow
from schemas.wire import encode_manifest, encode_receipt

CALM: Final = Pressure()
"""What the bridges say when nothing is the matter."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """Which blobs lie where, before a commit or after it.

    Attributes:
        living: those whose chunks are retained on the broker.
        kept: names of those whose bytes are in Redis.
    """

    living: tuple[LivingBlob, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Moves:
    """What a commit does to the blobs.

    Attributes:
        after: how they lie then.
        spread: to be retained on the broker; `swept`: no longer.
        dropped: names of those whose bytes leave Redis.
    """

    after: Shelf
    spread: tuple[Blob, ...] = ()
    swept: tuple[LivingBlob, ...] = ()
    dropped: tuple[str, ...] = field(default=())


def moves(state: TaskState, before: Shelf) -> Moves:
    """Compare what lies where with what the releases need."""
    wanted = on_broker(state)
    living = {blob.name: blob for blob in before.living}
    fresh = {blob.name: LivingBlob(blob.name, blob.chunks) for blob in wanted}
    kept = in_redis(state)
    still = set(kept)
    return Moves(
        after=Shelf(tuple(fresh.values()), kept),
        spread=tuple(blob for blob in wanted if blob.name not in living),
        swept=tuple(blob for name, blob in living.items() if name not in fresh),
        dropped=tuple(name for name in before.kept if name not in still),
    )


def records(
    state: TaskState, changes: Changes, moved: Moves, pressure: Pressure = CALM
) -> Iterator[Record]:
    """Everything to say for one commit, in order."""
    bundle, others = _spreads(state, moved)
    yield from bundle
    if changes.spec is not None:
        yield Say("spec", changes.spec, retain=True)
    for device, answer in changes.answers.items():
        yield Say(f"receipt/{device}", _receipt(state, device, answer), retain=True)
    for device in sorted(changes.allowed - changes.answers.keys()):
        yield Say(f"receipt/{device}", b"", retain=True)
    for device in sorted(changes.erased):
        yield Say(f"receipt/{device}", b"", retain=True)
        yield Say(f"state/{device}", b"", retain=True)
    yield from others
    if changes.model and (last := state.published) is not None:
        yield Say("model", told(state, last), retain=True)
    for suffix, payload in standing(state, changes).items():
        yield Say(suffix, payload, retain=True)
    for blob in moved.swept:
        yield Sweep(blob.name, blob.chunks)
    yield Say("metrics", metrics_json(state, pressure), retain=True)
    for event in changes.events:
        yield Say("events", msgspec.json.encode(event), retain=False)


def _spreads(state: TaskState, moved: Moves) -> tuple[list[Spread], list[Spread]]:
    """What is to be retained: the bundle, if it is new, and all others."""
    ref = None if state.spec is None else state.spec.bundle
    name = "" if ref is None else ref.blob
    fresh = [Spread(blob.name, blob.chunk_bytes) for blob in moved.spread]
    return [each for each in fresh if each.blob == name], [
        each for each in fresh if each.blob != name
    ]


def standing(state: TaskState, changes: Changes) -> dict[str, bytes]:
    """Retained topics that are not as before, beside spec, model and metrics; empty: cleared."""
    said: dict[str, bytes] = {}
    if changes.candidate or changes.spec is not None:
        said |= _candidate(state, cleared=changes.spec is not None)
    for device, version in changes.pins.items():
        release = state.releases.get(version) if version is not None else None
        said[f"model/{device}"] = b"" if release is None else told(state, release, pinned=True)
    if changes.pace:
        hint = state.pacing.said
        said["pace"] = b"" if hint is None else msgspec.json.encode(hint)
    if changes.releases:
        newest = [version_record(state, r) for _, r in sorted(state.releases.items())]
        said["versions"] = msgspec.json.encode(Versions(state.epoch, tuple(newest)))
    return said


def _candidate(state: TaskState, *, cleared: bool) -> dict[str, bytes]:
    """What canary devices shall have: the version that waits, or what everybody has."""
    if state.spec is None or not state.spec.gate.canary:
        return {"candidate": b""} if cleared else {}
    waiting = state.published if state.candidate is None else state.releases[state.candidate]
    return {} if waiting is None else {"candidate": told(state, waiting)}


def told(state: TaskState, release: Release, *, pinned: bool = False) -> bytes:
    """A release's manifest as it is published: sealed, where the task asks for checksums."""
    manifest = _as_of_now(state, release, pinned=pinned) if release.floats else release.manifest
    wants = state.spec is not None and state.spec.codec.checksum
    return sealed_array(manifest, EVERYBODY) if wants else manifest


def _as_of_now(state: TaskState, release: Release, *, pinned: bool) -> bytes:
    """Name no diffs that are swept; nor such as may be, while a pin holds."""
    manifest = release.named
    since = manifest.serial if pinned else oldest(state, manifest.serial)
    since = max(since, manifest.oldest)
    return (
        release.manifest
        if since == manifest.oldest
        else encode_manifest(replace(manifest, oldest=since))
    )


def version_record(state: TaskState, release: Release) -> VersionRecord:
    """One version, for people: how good it is is told when enough devices have said so."""
    manifest, known = release.named, release.judgement
    least = 1 if state.spec is None else state.spec.evaluate.min_devices
    told = known.devices >= least
    return VersionRecord(
        version=release.version,
        status=release.status,
        at_ms=release.at_ms,
        digest=manifest.model_digest.hex()[:16],
        bytes=manifest.blob_bytes,
        updates_folded=release.updates,
        devices=known.devices,
        metrics={name: mean.value for name, mean in known.means.items()} if told else {},
        examples=max((mean.examples for mean in known.means.values()), default=0),
        server=known.server,
        server_examples=known.server_examples,
        diff_bytes=manifest.ladder[0] if manifest.ladder else 0,
    )


def _receipt(state: TaskState, device: DeviceId, answer: Answer) -> bytes:
    window = answer.window or state.windows.get((device, answer.boot), SeqWindow())
    receipt = Receipt(
        epoch=state.epoch,
        boot=answer.boot,
        low=window.low,
        settled=window.settled_above_low,
        seq=answer.seq,
        outcome=answer.outcome,
        version=ModelVersion(state.model.version),
    )
    packed = encode_receipt(receipt)
    wants = state.spec is not None and state.spec.codec.checksum
    return sealed_array(packed, device) if wants else packed


def metrics_json(state: TaskState, pressure: Pressure = CALM) -> bytes:
    """The retained metrics: counters since the task's origin, and what the bridges have noted."""
    tally, last = state.tally, state.published
    return msgspec.json.encode(
        Metrics(
            phase=state.phase,
            epoch=state.epoch,
            version=state.model.version,
            published=None if last is None else last.version,
            candidate=state.candidate,
            buffered=state.model.buffered,
            updates_folded=tally.folded,
            updates_rejected=tally.rejected,
            duplicates_dropped=tally.duplicates,
            staleness_mean=tally.staleness_sum / tally.folded if tally.folded else 0.0,
            staleness_max=tally.staleness_max,
            payload_bytes=tally.payload_bytes,
            devices=len(state.devices),
            spools=len(state.windows),
            at_ms=state.cursor.ms,
            busy=pressure.busy,
            busy_times=pressure.busy_times,
            busy_s=pressure.busy_s,
            dropped=pressure.dropped,
        )
    )
