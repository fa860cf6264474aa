"""The half of the fold that decides what leaves the server: releases, canaries, pins.

Pure, like the other half. Without a gate a version that is due is published at once. With one it
is first a *candidate*: canary devices get it, or the server measures it, and the log's next entries
decide. While one waits no other is proposed.
"""

from dataclasses import replace
from hashlib import sha256

import msgspec
import numpy as np

from aggregator.gate import deadline_ms, verdict, with_figure
from aggregator.state import Ledger, Publication, Release, TaskState
from schemas.evaluation import Evaluation
from schemas.messages import Manifest
from schemas.names import DeviceId, Epoch, ModelVersion
from schemas.params import Params, base_digest, model_digest, settled_in
from schemas.task import TaskSpec
from schemas.watch import ReleaseStatus
from schemas.wire import encode_manifest


class Publisher:
    """Publishes, proposes, judges and withdraws versions of the state in a ledger."""

    def __init__(self, ledger: Ledger, views: int) -> None:
        self._ledger = ledger
        self._views = views

    @property
    def _state(self) -> TaskState:
        return self._ledger.state

    # -- time ------------------------------------------------------------------------------

    def deadline_ms(self, spec: TaskSpec) -> int | None:
        """When time alone would change something, in ms since 1970; None for never."""
        state = self._state
        if state.candidate is not None:
            return deadline_ms(spec, state.releases[state.candidate])
        if self._unpublished and spec.publish.seconds:
            return state.published_ms + round(spec.publish.seconds * 1000)
        return None

    def step(self, spec: TaskSpec, ms: int) -> Params | None:
        """Judge the version that waits, and publish or propose what is due.

        Returns what the model must go back to when the gate says so; None as a rule.
        """
        state = self._state
        last = state.published
        if state.candidate is not None and last is not None:
            match verdict(spec, state.releases[state.candidate], last, ms):
                case "publish":
                    self._release(state.candidate, ms)
                case "hold":
                    back = self._hold(spec, state.candidate, ms)
                    if back is not None:
                        return back
                case "wait":
                    return None
        if self._due(spec, ms):
            self.propose(spec, ms)
        return None

    @property
    def _unpublished(self) -> int:
        """Versions since the newest proposed one; 1 when none was."""
        state = self._state
        return 1 if state.proposed is None else state.model.version - state.proposed

    def _due(self, spec: TaskSpec, ms: int) -> bool:
        state, waiting = self._state, self._unpublished
        if not waiting:
            return False
        waited = ms - state.published_ms
        timely = spec.publish.seconds and waited >= round(spec.publish.seconds * 1000)
        return state.proposed is None or waiting >= spec.publish.every or bool(timely)

    # -- releases --------------------------------------------------------------------------

    def propose(self, spec: TaskSpec, ms: int, *, at_once: bool = False) -> None:
        """Keep the model as it is now; publish it, or let it wait at the gate."""
        state, changes = self._state, self._ledger.changes
        waits = spec.gate.holds and state.published is not None and not at_once
        waits = waits and state.proposed is not None
        version = state.model.version
        part = state.model.vectors["params"]
        whole = settled_in(spec.params, part if state.fixed is None else state.fixed, part)
        manifest, blob = _packed(spec, state.epoch, version, whole)
        state.proposed, state.published_ms = version, ms
        self._keep_view(version, part)
        packed = encode_manifest(manifest)
        self._keep(Release(version, ms, packed, "candidate", state.tally.folded))
        changes.publications.append(Publication(manifest, blob))
        if spec.gate.canary or not waits:
            state.bases[version] = base_digest(manifest.model_digest)
        if not waits:
            self._release(version, ms)
        else:
            state.candidate = version
            changes.candidate = True
            self._ledger.tell(ms, "proposed", digest=manifest.model_digest.hex()[:16])
        self._let_go(spec)

    def decide(self, spec: TaskSpec, version: int, ms: int, *, publish: bool) -> Params | None:
        """People decide about the version that waits; about another one they come too late."""
        state = self._state
        if state.candidate != version:
            self._ledger.tell(ms, "ignored", why=f"version {version} does not wait any more")
        elif publish:
            self._release(version, ms)
        else:
            return self._hold(spec, version, ms)
        return None

    def _release(self, version: int, ms: int) -> None:
        """Everybody may have it."""
        state, changes = self._state, self._ledger.changes
        self._note_figure()
        self._mark(version, "published")
        manifest = state.releases[version].named
        state.bases[version] = base_digest(manifest.model_digest)
        state.candidate = None
        changes.model = changes.candidate = True
        spec = state.spec
        if spec is not None and spec.gate.metric and spec.gate.on_worse == "rollback":
            state.good = state.model.vectors["params"].copy()
            changes.vectors.add("good")
        digest = manifest.model_digest.hex()[:16]
        self._ledger.tell(ms, "published", digest=digest, bytes=manifest.blob_bytes)

    def _hold(self, spec: TaskSpec, version: int, ms: int) -> Params | None:
        """Nobody else gets it."""
        state = self._state
        self._mark(version, "held")
        state.candidate = None
        if version not in state.bases and state.views.pop(version, None) is not None:
            self._ledger.changes.vectors.add(f"view:{version}")
        self._ledger.changes.candidate = True
        self._ledger.tell(ms, "held_back", held=version)
        return state.good if spec.gate.on_worse == "rollback" else None

    def _mark(self, version: int, status: ReleaseStatus) -> None:
        self._keep(msgspec.structs.replace(self._state.releases[version], status=status))

    def _keep(self, release: Release) -> None:
        self._state.releases[release.version] = release
        self._ledger.changes.releases[release.version] = release

    def withdraw_after(self, version: int) -> None:
        """Take back every version above this one: nobody may build on them any more."""
        state = self._state
        for newer in [v for v in state.bases if v > version]:
            del state.bases[newer]
        for newer in [v for v in state.releases if v > version]:
            self._mark(newer, "withdrawn")
        if state.candidate is not None and state.candidate > version:
            state.candidate = None
        for tag in [tag for tag, pinned in state.pins.items() if pinned > version]:
            del state.pins[tag]
        self.pin_devices()

    def _let_go(self, spec: TaskSpec) -> None:
        """Keep the parameters of the newest releases, and of those that somebody needs."""
        state = self._state
        needed = set(state.pins.values()) | {state.candidate}
        if (last := state.published) is not None:
            needed.add(last.version)
        spare = [version for version in sorted(state.releases) if version not in needed]
        for version in spare[: max(0, len(state.releases) - spec.publish.keep)]:
            del state.releases[version]
        names = {release.named.blob for release in state.releases.values()}
        kept = self._ledger.changes.publications
        kept[:] = [publication for publication in kept if publication.manifest.blob in names]

    def _keep_view(self, version: int, params: Params) -> None:
        """Keep the published model for strategies that mix against it, and drop the oldest."""
        state, changes = self._state, self._ledger.changes
        if self._views:
            state.views[version] = params.copy()
            changes.vectors.add(f"view:{version}")
        # whoever trains now has nothing newer than the newest base: its view stays
        needed = {version, max(state.bases, default=version)} if self._views else set()
        spare = [v for v in sorted(state.views) if v not in needed]
        for old in spare[: max(0, len(state.views) - self._views)]:
            del state.views[old]
            if self._views:
                state.bases.pop(old, None)
            changes.vectors.add(f"view:{old}")

    # -- judgement -------------------------------------------------------------------------

    def reported(self, version: int, found: Evaluation, *, by_server: bool) -> None:
        """Add what somebody has measured of a version, as long as its parameters are kept."""
        release = self._state.releases.get(version)
        if release is None:
            return
        known = release.judgement
        fresh = known.with_server(found) if by_server else known.with_device(found)
        self._keep(msgspec.structs.replace(release, judgement=fresh))

    def _note_figure(self) -> None:
        """Before the next version takes its place: was the last one the best so far?"""
        state, last = self._state, self._state.published
        if state.spec is None or last is None or not state.spec.finish.metric:
            return
        finish, least = state.spec.finish, state.spec.evaluate.min_devices
        figure = last.judgement.figure(finish.metric, by=finish.by, min_devices=least)
        state.best, state.since_best = with_figure(finish, state.best, state.since_best, figure)

    # -- pins ------------------------------------------------------------------------------

    def pin(self, tag: str, version: int | None, ms: int) -> None:
        """Hold those who bear a tag at a version, or let them go."""
        state = self._state
        if version is None:
            state.pins.pop(tag, None)
        elif version in state.releases and state.releases[version].status == "published":
            state.pins[tag] = version
        else:
            why = f"version {version} is not kept any more"
            self._ledger.tell(ms, "ignored", why=f"pin of {tag}: {why}")
        self.pin_devices()

    def pin_devices(self) -> None:
        """Look at every device again: who is held at what?"""
        for device in self._state.devices | self._state.pinned:
            self.pin_device(device)

    def pin_device(self, device: DeviceId) -> None:
        """A device is held by its own name before its tags, and by the first of those."""
        state = self._state
        record = state.devices.get(device)
        names = (device, *(record.tags if record else ()))
        version = next((state.pins[name] for name in names if name in state.pins), None)
        if state.pinned.get(device) == version:
            return
        if version is None:
            del state.pinned[device]
        else:
            state.pinned[device] = version
        self._ledger.changes.pins[device] = version

    # -- another life ----------------------------------------------------------------------

    def move_to(self, epoch: Epoch) -> None:
        """Live on in another epoch: no old base holds, and the model is published again."""
        state, changes = self._state, self._ledger.changes
        state.epoch = epoch
        self.begin_anew()
        for release in list(state.releases.values()):
            manifest = encode_manifest(replace(release.named, epoch=epoch))
            self._keep(msgspec.structs.replace(release, manifest=manifest))
        changes.pins |= state.pinned

    def begin_anew(self) -> None:
        """No old base holds, nothing waits: the model as it is now is published at once."""
        state = self._state
        if state.candidate is not None:
            self._mark(state.candidate, "held")
        state.bases.clear()
        state.candidate = state.proposed = None


def _packed(spec: TaskSpec, epoch: Epoch, version: int, params: Params) -> tuple[Manifest, bytes]:
    """A model's manifest and its bytes: little-endian float32."""
    blob = params.astype("<f4", copy=False).tobytes()
    manifest = Manifest(
        epoch=epoch,
        version=ModelVersion(version),
        model_digest=model_digest(spec.params.digest, params),
        spec_digest=spec.params.digest,
        codec=0,
        blob=f"k{epoch}-{version}",
        blob_digest=sha256(blob).digest(),
        blob_bytes=len(blob),
        chunk_bytes=spec.publish.chunk_bytes,
    )
    return manifest, blob


def params_of(blob: bytes) -> Params:
    """Read a model's bytes: float32, writable."""
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)
