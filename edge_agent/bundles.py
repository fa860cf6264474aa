"""A task's training bundle on the device: fetched in chunks, kept on the spool, read again.

It is fetched before any model, once in a task's life, and only by a trainer that takes one. What is
not the bundle that the specification names, or would not be safe to load, is thrown away and
fetched again, each time later; nothing of it is run.
"""

import asyncio
import logging
from collections.abc import Callable
from hashlib import sha256
from time import monotonic

from edge_agent import disk
from edge_agent.download import Parcel, fits, joined, next_window
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.windows import Connection, Windows
from mqtt_session.backoff import Backoff
from schemas.bundle import Bundle, BundleRef, read_bundle
from schemas.task import TaskSpec

log = logging.getLogger("fedmq.agent")


def is_here(spool: Spool, ref: BundleRef) -> bool:
    """Whether the disk has this bundle."""
    return spool.load("bundle_digest") == ref.digest.encode()


def stored_bundle(spool: Spool, spec: TaskSpec) -> Bundle | None:
    """The task's bundle, read and checked; None when it has none, or it is not here yet.

    Raises:
        ValueError: the disk gives back something else, or what cannot be a bundle of this task.
    """
    if spec.bundle is None or not is_here(spool, spec.bundle):
        return None
    return checked(spool.load("bundle") or b"", spec)


def checked(data: bytes, spec: TaskSpec) -> Bundle:
    """Read the bundle of a task. Raises ValueError: it is another one, or none."""
    ref = spec.bundle
    if ref is None or sha256(data).hexdigest() != ref.digest:
        msg = "it has another digest than the specification says"
        raise ValueError(msg)
    bundle = read_bundle(data)
    if bundle.manifest.params != spec.params:
        msg = "its tensors are not the task's"
        raise ValueError(msg)
    return bundle


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

    def lacks(self, spec: TaskSpec | None) -> bool:
        """Whether this device still has to fetch the bundle of the task."""
        ref = None if spec is None or not self._is_wanted else spec.bundle
        return ref is not None and not is_here(self._spool, ref)

    def pause_s(self) -> float:
        """How long to wait before it is asked for again."""
        return max(0.0, self._due - monotonic())

    async def fetch(self, session: Connection, spec: TaskSpec) -> bool:
        """Fetch it, resuming from the chunks that are here; False: not yet, see `pause_s`."""
        ref = spec.bundle
        if ref is None or self.pause_s() or not await asyncio.to_thread(self._fits, ref):
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
        except ValueError as exc:
            log.warning("bundle_refused error=%s", exc)
            self._spool.drop_chunks()
            self._wait_longer(self._failures)
            return False
        self._spool.save(bundle=data, bundle_digest=bundle.digest.encode())
        self._spool.drop_chunks()
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
