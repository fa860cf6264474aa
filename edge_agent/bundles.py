"""A task's training bundle on the device: fetched in chunks, kept on the spool, read again.

It is fetched before any model, once in a task's life, and only by a trainer that takes one. What is
not the bundle that the specification names is thrown away and fetched again, each time later. What
is that very bundle, and cannot be read or would not be safe to load, stays so: that is written
down, and it is not fetched again until the specification names another, or fedmq is another
version. Nothing of either is run.

A bundle that has passed may still take more memory than there is, and its loading end the process.
That it is being loaded is written down, too (`loading`): after LOADS_MAX such ends it rests.

A bundle that the specification does not name any more is forgotten with the specification that
named it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from importlib import metadata
from time import monotonic
from typing import Final

from edge_agent import disk
from edge_agent.download import Parcel, fits, joined, next_window
from edge_agent.settings import AgentSettings
from edge_agent.spool import DiskFull, Spool
from edge_agent.windows import Connection, Windows
from mqtt_session.backoff import Backoff
from schemas.bundle import SCHEMA, Bundle, BundleRef, read_bundle
from schemas.task import TaskSpec

log = logging.getLogger("fedmq.agent")

LOADS_MAX: Final = 2
"""Times that a bundle's loading may end the process, one after the other: a power cut may be one of
them, and is hardly two."""

_WHY_BYTES_MAX: Final = 1024
_KEPT: Final = ("bundle", "bundle_digest")


class OtherBytesError(ValueError):
    """It is not the bundle that the specification names: it was altered, or cut off."""


def is_here(spool: Spool, ref: BundleRef) -> bool:
    """Whether the disk has this bundle."""
    return spool.load("bundle_digest") == ref.digest.encode()


def missing(spool: Spool, spec: TaskSpec) -> str:
    """Why the task's bundle is not on the disk, a sentence; empty: it is, or there is none."""
    if spec.bundle is None or is_here(spool, spec.bundle):
        return ""
    why = _refusal(spool, spec)
    return f"the task's bundle is refused: {why}" if why else "the task's bundle is not here yet"


def stored_bundle(spool: Spool, spec: TaskSpec) -> Bundle | None:
    """The task's bundle, read and checked; None when it has none, or it is not here yet.

    Raises:
        ValueError: the disk gives back something else, or what cannot be a bundle of this task, or
            what has ended the process LOADS_MAX times when it was loaded.
    """
    if spec.bundle is None or not is_here(spool, spec.bundle):
        return None
    if (times := _loads(spool, spec.bundle)) >= LOADS_MAX:
        told = f"loading the task's bundle has ended this process {times} times, and is not tried"
        remedy = "create the task with a smaller one, or update fedmq or onnxruntime on this device"
        raise ValueError(f"{told} again: {remedy}")
    return checked(spool.load("bundle") or b"", spec)


def checked(data: bytes, spec: TaskSpec) -> Bundle:
    """Read the bundle of a task.

    Raises:
        OtherBytesError: it has another digest than the specification says.
        ValueError: it has that digest, and cannot be read or is not to be loaded.
    """
    ref = spec.bundle
    if ref is None or sha256(data).hexdigest() != ref.digest:
        msg = "it has another digest than the specification says"
        raise OtherBytesError(msg)
    bundle = read_bundle(data)
    if bundle.manifest.params != spec.params:
        msg = "its tensors are not the task's"
        raise ValueError(msg)
    return bundle


@contextmanager
def loading(spool: Spool, ref: BundleRef) -> Iterator[None]:
    """Write down that a bundle is loaded within; forget it when the process has lived through it.

    A disk that takes nothing does not keep it from being loaded.
    """
    note = f"{_loader(ref)} {_loads(spool, ref) + 1}"
    with suppress(DiskFull):
        spool.save(bundle_loading=note.encode())
    try:
        yield
    finally:
        with suppress(DiskFull):
            spool.save(["bundle_loading"])


def _loads(spool: Spool, ref: BundleRef) -> int:
    """How often its loading has ended the process, since it was last lived through."""
    loader, _, times = (spool.load("bundle_loading") or b"").decode().rpartition(" ")
    return int(times) if loader == _loader(ref) else 0


def _loader(ref: BundleRef) -> str:
    return f"{ref.digest} fedmq {_version('fedmq')} onnxruntime {_version('onnxruntime')}"


def _reader(spec: TaskSpec) -> str:
    """A bundle, and all that it depends on whether it is refused."""
    digest = "" if spec.bundle is None else spec.bundle.digest
    return f"{digest} {spec.params.digest.hex()} schema {SCHEMA} fedmq {_version('fedmq')}"


def _refusal(spool: Spool, spec: TaskSpec) -> str:
    """Why this fedmq has refused the very bundle that is named; empty: it has not."""
    reader, _, why = (spool.load("bundle_refused") or b"").decode().partition("\n")
    return why if reader == _reader(spec) else ""


@cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


class BundleFetcher:
    """What fetches the bundle of a task, over one connection after the other.

    Args:
        settings: pauses and patience.
        windows: how chunks are asked for.
        spool: the device's disk.
        spec: gives the specification that holds now.
        wanted: whether this device's trainer takes a bundle.
    """

    def __init__(
        self,
        settings: AgentSettings,
        windows: Windows,
        spool: Spool,
        *,
        spec: Callable[[], TaskSpec | None],
        wanted: bool,
    ) -> None:
        self._windows = windows
        self._spool = spool
        self._spec = spec
        self._is_wanted = wanted
        self._again = Backoff(settings.silence_s, settings.resend_longest_s)
        self._failures = 0
        self._due = 0.0
        self._refused: BundleRef | None = None
        if self._is_stale(spec()) and spool.bytes_of("bundle"):  # of a trainer before this one
            with suppress(DiskFull):
                spool.save(_KEPT)

    def lacks(self, spec: TaskSpec | None) -> bool:
        """Whether this device still has to fetch the bundle of the task."""
        if spec is None or spec.bundle is None or not self._is_wanted:
            return False
        return not (is_here(self._spool, spec.bundle) or _refusal(self._spool, spec))

    def store_spec(self, payload: bytes, spec: TaskSpec) -> None:
        """Keep a specification, and forget in the same moment a bundle that it does not name."""
        self._spool.save(_KEPT if self._is_stale(spec) else (), spec=payload)

    def _is_stale(self, spec: TaskSpec | None) -> bool:
        """Whether a bundle on the disk is of no use."""
        if spec is None or not self._is_wanted:
            return not self._is_wanted
        return spec.bundle is None or not is_here(self._spool, spec.bundle)

    def pause_s(self) -> float:
        """How long to wait before it is asked for again."""
        return max(0.0, self._due - monotonic())

    async def fetch(self, session: Connection, spec: TaskSpec) -> bool:
        """Fetch it, resuming from the chunks that are here; False: not yet, see `pause_s`."""
        ref = spec.bundle
        if ref is None or not self.lacks(spec) or self.pause_s():
            return False
        if not await asyncio.to_thread(self._fits, ref):
            return False
        parcel = Parcel(ref.blob, ref.bytes, ref.chunk_bytes)
        found = await asyncio.to_thread(self._spool.chunks, ref.blob)
        have = {index: chunk for index, chunk in found.items() if fits(parcel, index, chunk)}
        while window := next_window(parcel, have):
            pieces = [(ref.blob, index) for index in window]
            came = await self._windows.fetch(
                session, pieces, lambda _, index, chunk: fits(parcel, index, chunk)
            )
            chunks = {index: chunk for (_, index), chunk in came.items()}
            await asyncio.to_thread(self._spool.add_chunks, ref.blob, chunks.items())
            have |= chunks
            if not self._is_named(ref):
                return False  # the task was made anew: what it names now is fetched instead
            if len(chunks) < len(window):
                log.info("silence blob=%s: asking again for the task's bundle", ref.blob)
                self._wait_longer(0 if chunks else self._failures)
                return False
        return await asyncio.to_thread(self._keep, joined(parcel, have), spec)

    def _keep(self, data: bytes, spec: TaskSpec) -> bool:
        """Keep the whole, or throw it away."""
        try:
            bundle = checked(data, spec)
        except OtherBytesError as exc:
            log.warning("bundle_refused error=%s: fetching it again later", exc)
            self._spool.drop_chunks()
            self._wait_longer(self._failures)
            return False
        except ValueError as exc:
            log.error("bundle_refused error=%s: not fetched again", exc)  # noqa: TRY400 - theirs
            why = f"{exc}".encode()[:_WHY_BYTES_MAX].decode(errors="ignore")
            self._spool.save(bundle_refused=f"{_reader(spec)}\n{why}".encode())
            self._spool.drop_chunks()
            return False
        self._spool.save(bundle=data, bundle_digest=bundle.digest.encode())
        self._spool.drop_chunks()
        if spec.bundle is None or not self._is_named(spec.bundle):
            self._spool.save(_KEPT)  # another specification came while it was looked through
            return False
        self._failures = 0
        counted = len(data), self._windows.spent
        log.info("bundle digest=%s bytes=%d with_packets=%d", bundle.digest[:16], *counted)
        self._windows.forget()
        return True

    def _wait_longer(self, failures: int) -> None:
        self._failures = failures + 1
        self._due = monotonic() + self._again.bound_s(self._failures)

    def _is_named(self, ref: BundleRef) -> bool:
        spec = self._spec()
        return spec is not None and spec.bundle == ref

    def _fits(self, ref: BundleRef) -> bool:
        """Whether it fits below the disk's bound; told once."""
        parcel = Parcel(ref.blob, ref.bytes, ref.chunk_bytes)
        if self._spool.room_for_bundle(disk.chunks_on_pages(parcel), ref.bytes):
            return True
        if ref != self._refused:
            told = "bundle_refused bytes=%d: no room for it within disk_mb=%d"
            log.warning(told, ref.bytes, self._spool.disk_mb)
            self._refused = ref
        self._wait_longer(self._failures)
        return False
