"""What the world is told after a commit: records for the outbox. Pure.

Order matters: the specification, then a blob before the manifest that names it, then the sweep of
what is too old, then receipts and what people watch.
"""

from collections.abc import Iterator

import msgspec

from aggregator.checkpoint import LivingBlob
from aggregator.fold import Answer, Changes, TaskState
from schemas.messages import Receipt
from schemas.names import DeviceId, ModelVersion
from schemas.outbox import Record, Say, Spread, Sweep
from schemas.window import SeqWindow
from schemas.wire import encode_manifest, encode_receipt

GENERATIONS = 2
"""Blobs kept on the broker: the newest and the one before, for whoever is in mid-download."""


def next_living(
    living: tuple[LivingBlob, ...], changes: Changes
) -> tuple[tuple[LivingBlob, ...], LivingBlob | None]:
    """The blobs that live after a commit, and the one to sweep."""
    if changes.publication is None:
        return living, None
    manifest = changes.publication.manifest
    fresh = LivingBlob(manifest.blob, manifest.chunks)
    if fresh in living:
        return living, None
    everyone = (*(blob for blob in living if blob.name != fresh.name), fresh)
    if len(everyone) <= GENERATIONS:
        return everyone, None
    return everyone[1:], everyone[0]


def records(state: TaskState, changes: Changes, swept: LivingBlob | None) -> Iterator[Record]:
    """Everything to say for one commit, in order."""
    if changes.spec is not None:
        yield Say("spec", changes.spec, retain=True)
    if changes.publication is not None:
        manifest = changes.publication.manifest
        yield Spread(manifest.blob, manifest.chunk_bytes)
        yield Say("model", encode_manifest(manifest), retain=True)
    if swept is not None:
        yield Sweep(swept.name, swept.chunks)
    for device, answer in changes.answers.items():
        yield Say(f"receipt/{device}", _receipt(state, device, answer), retain=True)
    yield Say("metrics", metrics_json(state), retain=True)
    for event in changes.events:
        yield Say("events", msgspec.json.encode(event), retain=False)


def _receipt(state: TaskState, device: DeviceId, answer: Answer) -> bytes:
    window = state.windows.get((device, answer.boot), SeqWindow())
    receipt = Receipt(
        epoch=state.epoch,
        boot=answer.boot,
        low=window.low,
        settled=window.settled_above_low,
        seq=answer.seq,
        outcome=answer.outcome,
        version=ModelVersion(state.model.version),
    )
    return encode_receipt(receipt)


def metrics_json(state: TaskState) -> bytes:
    """The retained metrics: counters since the task's origin."""
    tally = state.tally
    return msgspec.json.encode(
        {
            "epoch": state.epoch,
            "version": state.model.version,
            "published": max(state.bases, default=None),
            "buffered": state.model.buffered,
            "updates_folded": tally.folded,
            "updates_rejected": tally.rejected,
            "duplicates_dropped": tally.duplicates,
            "staleness_mean": tally.staleness_sum / tally.folded if tally.folded else 0.0,
            "staleness_max": tally.staleness_max,
            "payload_bytes": tally.payload_bytes,
            "spools": len(state.windows),
            "at_ms": state.cursor.ms,
        }
    )
