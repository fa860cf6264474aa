"""Which blobs a task needs, and where: retained on the broker, kept in Redis. Pure.

Of a version devices fetch the manifest's blob: its parameters, or a keyframe. On a lattice there
are the diffs between publications too, and W0 unless devices draw it; the parameters themselves are
then kept beside the keyframe, for whoever needs all of a model. A task's training bundle is needed
as long as the task lives.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from aggregator.state import Changes, TaskState
from schemas.ladder import blob_name

GENERATIONS: Final = 2
"""Published blobs kept on the broker: the newest and the one before, for who is in mid-download."""

KEYFRAMES: Final = 8
"""The same on a lattice, where they are small and versions come fast: a slow link that has begun a
keyframe ends it, and goes on from there by diffs."""


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob that is cut into chunks."""

    name: str
    size: int
    chunk_bytes: int

    @property
    def chunks(self) -> int:
        """How many."""
        return -(-self.size // self.chunk_bytes)


def on_broker(state: TaskState) -> tuple[Blob, ...]:
    """What devices may ask for, each once."""
    every = (*_of_bundle(state), *_of_lattice(state), *_of_releases(state))
    found = {blob.name: blob for blob in every}
    return tuple(found.values())


def in_redis(state: TaskState) -> tuple[str, ...]:
    """The names of all that is kept."""
    kept = [name for _, release in sorted(state.releases.items()) for name in release.blobs]
    others = (*_of_lattice(state), *_of_bundle(state))
    return tuple(dict.fromkeys([*kept, *(blob.name for blob in others)]))


def fresh(changes: Changes, kept: Collection[str]) -> dict[str, bytes]:
    """What a commit has to store: the blobs that have come and are kept after it."""
    come = {each.name: each.blob for each in changes.publications} | changes.beside
    return {name: blob for name, blob in come.items() if name in kept}


def renamed(changes: Changes, kept: Collection[str]) -> dict[str, str]:
    """Blobs that a commit has to rename: old name -> new one."""
    return {old: new for old, new in changes.renamed.items() if new in kept}


def _of_bundle(state: TaskState) -> Iterator[Blob]:
    ref = None if state.spec is None else state.spec.bundle
    if ref is not None:
        yield Blob(ref.blob, ref.bytes, ref.chunk_bytes)


def _of_lattice(state: TaskState) -> Iterator[Blob]:
    lattice = state.lattice
    if lattice is None:
        return
    if not lattice.drawn:
        yield Blob(lattice.name, _whole_bytes(state), lattice.chunk_bytes)
    for (serial, level), size in lattice.rungs.items():
        yield Blob(blob_name(state.epoch, serial, level), size, lattice.chunk_bytes)


def _of_releases(state: TaskState) -> Iterator[Blob]:
    published = [v for v, r in sorted(state.releases.items()) if r.status == "published"]
    newest = GENERATIONS if state.lattice is None else KEYFRAMES
    versions = set(published[-newest:]) | set(state.pinned.values())
    if state.candidate is not None and state.spec is not None and state.spec.gate.canary:
        versions.add(state.candidate)
    for version in sorted(versions & state.releases.keys()):
        manifest = state.releases[version].named
        if manifest.origin:
            yield Blob(manifest.origin, _whole_bytes(state), manifest.chunk_bytes)
        yield Blob(manifest.blob, manifest.blob_bytes, manifest.chunk_bytes)


def _whole_bytes(state: TaskState) -> int:
    """The size of a whole model as float32."""
    return 4 * state.spec.params.size if state.spec is not None else 0
