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
from aggregator.shelf import in_redis
from aggregator.state import Lattice, Ledger, Publication, Release, TaskState
from aggregator.walking import begin_ladder, begun, halves_of, oldest, published_part, walk_on
from schemas.evaluation import Evaluation
from schemas.ladder import blob_name, keyframe_name
from schemas.lattice import KEYFRAME
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
        manifest, part, floats = self._again(version) or self._fresh(spec, version)
        state.proposed, state.published_ms = version, ms
        self._keep_view(version, part)
        packed = encode_manifest(manifest)
        updates = state.tally.folded
        self._keep(Release(version, ms, packed, "candidate", updates, floats=floats))
        if spec.gate.canary or not waits:
            state.bases[version] = base_digest(manifest.model_digest)
        if not waits:
            self._release(version, ms)
        else:
            state.candidate = version
            changes.candidate = True
            changes.model |= self._outran_published()
            self._ledger.tell(ms, "proposed", digest=manifest.model_digest.hex()[:16])
        self._let_go(spec)

    def _fresh(self, spec: TaskSpec, version: int) -> tuple[Manifest, Params, str]:
        """The model as it is now: its manifest, what travels of it, where its parameters lie."""
        state, changes = self._state, self._ledger.changes
        lattice = state.lattice
        if lattice is None:
            part = state.model.vectors["params"]
            manifest, blob = _plain(spec, state.epoch, version, self._whole(spec, part))
            changes.beside.pop(manifest.blob, None)  # its keyframe of another epoch, moved here
            changes.publications.append(Publication(manifest, blob, manifest.blob))
            return manifest, part, ""
        self._walk(spec, lattice)
        part = published_part(lattice, spec.params)
        whole, floats = self._whole(spec, part), f"f{state.epoch}-{version}"
        manifest = _on_lattice(spec, state, lattice, version, whole)
        changes.publications.append(Publication(manifest, _blob(whole), floats))
        changes.beside[manifest.blob] = lattice.keyframe
        return manifest, part, floats

    def _again(self, version: int) -> tuple[Manifest, Params, str] | None:
        """The same for a version that was proposed in this epoch already, as it was then.

        One version is never two models: what is on a lattice is not walked on, and what is not is
        not brought onto it.
        """
        state = self._state
        known = state.releases.get(version)
        if known is None or (state.lattice is None and not known.floats):
            return None
        if known.params_blob not in {f"f{state.epoch}-{version}", f"k{state.epoch}-{version}"}:
            return None
        part = state.model.vectors["params"]
        if state.spec is not None and state.lattice is not None and known.floats:
            part = published_part(state.lattice, state.spec.params)
        return known.named, part, known.floats

    def _walk(self, spec: TaskSpec, lattice: Lattice) -> None:
        """Be the next publication, and keep the diffs that lead to it."""
        state, changes = self._state, self._ledger.changes
        before = halves_of(lattice)
        made = walk_on(lattice, spec, state.model.vectors["params"], state.serial)
        state.serial += 1
        changes.vectors |= {"keyframe", *(before ^ halves_of(lattice))}
        changes.beside |= {blob_name(state.epoch, *rung): diff for rung, diff in made.items()}

    def _whole(self, spec: TaskSpec, part: Params) -> Params:
        """What travels, in its place between what does not."""
        return _settled(self._state, spec, part)

    def _outran_published(self) -> bool:
        """Whether the manifest that everybody has names diffs that were swept."""
        last = self._state.published
        if last is None or not last.floats:
            return False
        manifest = last.named
        return oldest(self._state, manifest.serial) > manifest.oldest

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
        changes = self._ledger.changes
        kept = changes.publications
        if len(kept) > 1:  # what waits for its commit is bounded
            names = set(in_redis(state))
            kept[:] = [publication for publication in kept if publication.name in names]
            for name in changes.beside.keys() - names:
                del changes.beside[name]

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
        if state.lattice is not None:
            changes.vectors |= halves_of(state.lattice)
            begin_ladder(state.lattice, state.serial)
        for release in list(state.releases.values()):
            manifest = replace(release.named, epoch=epoch)
            if release.floats:
                manifest = self._moved(manifest)
            self._keep(msgspec.structs.replace(release, manifest=encode_manifest(manifest)))
        changes.pins |= state.pinned

    def _moved(self, manifest: Manifest) -> Manifest:
        """Devices find a keyframe by epoch and version: give it its name in the new epoch."""
        changes = self._ledger.changes
        old, new = manifest.blob, keyframe_name(manifest.epoch, manifest.version)
        if old in changes.beside:
            changes.beside[new] = changes.beside.pop(old)
        else:
            first = next((was for was, now in changes.renamed.items() if now == old), old)
            changes.renamed[first] = new
        return replace(manifest, blob=new)

    # -- the lattice -----------------------------------------------------------------------

    def choose_lattice(self, spec: TaskSpec, *, first: bool) -> None:
        """Walk on a lattice from here on, or no longer; `first`: nothing was folded before.

        W0 is the model as it is now. Who switches it on again begins with another one.
        """
        state, changes = self._state, self._ledger.changes
        if spec.publish.lattice and state.lattice is None:
            part = state.model.vectors["params"]
            whole = self._whole(spec, part)
            drawn = first and spec.init is not None
            state.lattice = begun(spec, whole, part, drawn=drawn, serial=state.serial)
            manifests = (release.named for release in state.releases.values())
            for same in (m for m in manifests if m.origin == state.lattice.name):
                state.lattice.chunk_bytes = same.chunk_bytes  # it is retained in such chunks
            changes.vectors |= {"origin", "keyframe"}
            if not drawn:
                changes.beside[state.lattice.name] = _blob(whole)
        elif not spec.publish.lattice and state.lattice is not None:
            changes.vectors |= {"origin", "keyframe", *halves_of(state.lattice)}
            state.lattice = None
            changes.model = changes.candidate = True  # what they name is swept

    def begin_anew(self) -> None:
        """No old base holds, nothing waits: the model as it is now is published at once."""
        state = self._state
        if state.candidate is not None:
            self._mark(state.candidate, "held")
        state.bases.clear()
        state.candidate = state.proposed = None


def model_now(state: TaskState, spec: TaskSpec) -> Params:
    """All of the model that bears the newest version: as devices have it, if they were to."""
    part, release = state.model.vectors["params"], state.releases.get(state.model.version)
    newest = release is not None and state.proposed == release.version and release.floats
    if newest and state.lattice is not None:
        part = published_part(state.lattice, spec.params)
    return _settled(state, spec, part)


def _settled(state: TaskState, spec: TaskSpec, part: Params) -> Params:
    return settled_in(spec.params, part if state.fixed is None else state.fixed, part)


def _blob(params: Params) -> bytes:
    """Little-endian float32."""
    return params.astype("<f4", copy=False).tobytes()


def _plain(spec: TaskSpec, epoch: Epoch, version: int, whole: Params) -> tuple[Manifest, bytes]:
    """A model that travels as it is: its manifest and its bytes."""
    blob = _blob(whole)
    manifest = Manifest(
        epoch=epoch,
        version=ModelVersion(version),
        model_digest=model_digest(spec.params.digest, whole),
        spec_digest=spec.params.digest,
        codec=0,
        blob=f"k{epoch}-{version}",
        blob_digest=sha256(blob).digest(),
        blob_bytes=len(blob),
        chunk_bytes=spec.publish.chunk_bytes,
    )
    return manifest, blob


def _on_lattice(
    spec: TaskSpec, state: TaskState, lattice: Lattice, version: int, whole: Params
) -> Manifest:
    """The manifest of the newest publication on a lattice."""
    serial = state.serial - 1
    return Manifest(
        epoch=state.epoch,
        version=ModelVersion(version),
        model_digest=model_digest(spec.params.digest, whole),
        spec_digest=spec.params.digest,
        codec=KEYFRAME,
        blob=keyframe_name(state.epoch, ModelVersion(version)),
        blob_digest=b"",
        blob_bytes=len(lattice.keyframe),
        chunk_bytes=lattice.chunk_bytes,
        serial=serial,
        oldest=oldest(state, serial),
        origin="" if lattice.drawn else lattice.name,
        ladder=lattice.newest,
    )


def params_of(blob: bytes) -> Params:
    """Read a model's bytes: float32, writable."""
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)
