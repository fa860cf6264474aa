"""Catching up with a model that walks on a lattice: the plan of `edge_agent.catch_up`, carried out.

Whatever comes is kept on the disk until the model is proved and adopted; so a walk goes on where a
lost link or a power cut has left it. What did not come is not asked for again on this connection
while there is another way; a wrong answer counts as none; what else has led to a wrong model is
thrown away, and then only the keyframe counts.
"""

import asyncio
import logging
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from edge_agent.catch_up import Plan, Start, cheapest, leads_on, useful
from edge_agent.download import Here, Parcel, Piece, fits_parcel, joined, next_pieces
from edge_agent.offers import is_lattice
from edge_agent.spool import Spool
from edge_agent.windows import Connection, Windows
from schemas.asking import Question
from schemas.errors import WireError
from schemas.initial import initial_params
from schemas.ladder import origin_name
from schemas.lattice import Ints, applied, decode_diff, decode_keyframe, placed, sizes_of
from schemas.messages import Manifest
from schemas.outcomes import Reason
from schemas.params import Params, model_digest, settled_in, travelling
from schemas.task import TaskSpec
from schemas.wire import decode_manifest

log = logging.getLogger("fedmq.agent")

Wanted: TypeAlias = Callable[[], Manifest | None]
"""The model that is wanted now; None: none."""


class Silence(Exception):  # noqa: N818 - a state of the network, told as `silence`
    """What was asked for did not come."""


@dataclass(frozen=True, slots=True)
class Caught:
    """A model that is proved.

    Attributes:
        way: how it came.
        values: what to keep of it, by the spool's names.
    """

    way: str
    values: Mapping[str, bytes]


@dataclass(slots=True)
class Doubts:
    """What one connection has taught.

    Attributes:
        silent: blobs that did not come.
        nobody_answers: whether a question was answered with silence.
        wrong: whether what is here has led to a wrong model: only a keyframe helps.
    """

    silent: set[str] = field(default_factory=set)
    nobody_answers: bool = False
    wrong: bool = False


class Walker:
    """What catches up for one device.

    Args:
        windows: what asks and waits.
        spool: the device's disk.
    """

    def __init__(self, windows: Windows, spool: Spool) -> None:
        self._windows = windows
        self._spool = spool
        self._doubts = Doubts()
        self._asking = False

    def begin(self) -> None:
        """A new connection: its broker may have what the last one had not.

        But if that ended within a question an answer takes longer than links last here: chunks of
        the ladder are kept, of an answer nothing is.
        """
        self._doubts = Doubts(nobody_answers=self._asking)
        self._asking = False

    async def catch_up(
        self, session: Connection, manifest: Manifest, spec: TaskSpec, wanted: Wanted
    ) -> Caught | None:
        """Get the model by the cheapest way that works; None: silence, or another is wanted.

        When another is wanted meanwhile this one is got only as a step towards it.

        Raises:
            WireError: it is wrong, and so is its keyframe; or its origin is not to be had.
        """
        here: Here = await asyncio.to_thread(self._spool.all_chunks)
        if not await self._get_origin(session, manifest, spec, here, wanted):
            return None
        while True:
            start = await asyncio.to_thread(self._start, spec)
            plan = self._plan(start, manifest, here)
            try:
                if not self._is_worth_its_end(plan, start, manifest, wanted(), here):
                    return None
                blobs = await self._come_nearer(session, manifest, plan, start, here)
                if blobs is not None:
                    caught = await asyncio.to_thread(self._proved, manifest, spec, plan.way, blobs)
                    self._doubts = Doubts(nobody_answers=self._doubts.nobody_answers)
                    return caught
            except Silence:
                if plan.way == "keyframe":  # nothing comes at all: begin with the cheapest again
                    self._doubts.silent.clear()
                return None
            except WireError as exc:
                if plan.way == "keyframe":
                    raise
                told = "model_refused version=%d way=%s error=%s: going another way"
                log.warning(told, manifest.version, plan.way, exc)
                if plan.way == "ask":
                    self._doubts.nobody_answers = True
                    continue
                self._doubts.wrong = True  # what came of the keyframe has no part in that
                await asyncio.to_thread(self._spool.keep_pieces, {}, of=[manifest.blob])
                here = {blob: chunks for blob, chunks in here.items() if blob == manifest.blob}

    def _plan(self, start: Start | None, manifest: Manifest, here: Here) -> Plan:
        doubts = self._doubts
        return cheapest(
            start,
            manifest,
            here,
            self._windows.costs,
            silent=doubts.silent,
            may_ask=not doubts.nobody_answers,
        )

    def _is_worth_its_end(
        self,
        plan: Plan,
        start: Start | None,
        manifest: Manifest,
        wanted: Manifest | None,
        here: Here,
    ) -> bool:
        """Whether to go on with a plan: what it leads to is wanted, or is on the way there."""
        if wanted is None or wanted is manifest:
            return wanted is not None
        there, at_once = Start(manifest.epoch, manifest.serial), self._plan(start, wanted, here)
        return leads_on(plan, there, wanted, at_once, self._windows.costs)

    def _start(self, spec: TaskSpec) -> Start | None:
        """Where a walk may begin: at the model that is here, with its place on the lattice."""
        raw = self._spool.load("manifest")
        stored = None if raw is None else decode_manifest(raw)
        if self._doubts.wrong or stored is None or not is_lattice(stored):
            return None
        fits = self._spool.bytes_of("q") == 4 * spec.params.wire_size
        fits = fits and self._spool.bytes_of("exponents") == len(sizes_of(spec.params))
        return Start(stored.epoch, stored.serial) if fits else None

    # -- what comes ------------------------------------------------------------------------

    async def _come_nearer(
        self, session: Connection, manifest: Manifest, plan: Plan, start: Start | None, here: Here
    ) -> list[bytes] | None:
        """One window or one question; the blobs when the plan has come to its end, else None.

        Raises Silence, WireError.
        """
        if plan.way == "ask" and start is not None:
            ask = Question(manifest.epoch, start.serial, manifest.serial)
            self._asking = True
            diff = await self._windows.ask(session, ask)
            self._asking = False
            if diff is None:
                log.info("silence ask=%d-%d: going another way", ask.first, ask.last)
                self._doubts.nobody_answers = True
                return None
            return [diff]
        if pieces := next_pieces(plan.parcels, here):
            keep = useful(start, manifest)
            await self._window(session, plan.parcels, pieces, here, keep=keep)
            return None
        return [joined(parcel, here.get(parcel.blob, {})) for parcel in plan.parcels]

    async def _window(
        self,
        session: Connection,
        parcels: Sequence[Parcel],
        pieces: Sequence[Piece],
        here: Here,
        *,
        keep: Collection[str],
    ) -> None:
        """Fetch some chunks, keep them on the disk, and add them to what is here. Raises Silence.

        Of what the disk has, the blobs in `keep` stay.
        """
        by_name = {parcel.blob: parcel for parcel in parcels}

        def fits(blob: str, index: int, chunk: bytes) -> bool:
            return fits_parcel(by_name[blob], here.get(blob, {}), index, chunk)

        found = await self._windows.fetch(session, pieces, fits)
        await asyncio.to_thread(self._spool.keep_pieces, found, of=keep)
        for (blob, index), chunk in found.items():
            here.setdefault(blob, {})[index] = chunk
        missing = {blob for blob, index in pieces if (blob, index) not in found}
        if missing:
            log.info("silence blob=%s: reading the manifest again", min(missing))
            self._doubts.silent |= missing
            raise Silence

    # -- the origin ------------------------------------------------------------------------

    async def _get_origin(
        self,
        session: Connection,
        manifest: Manifest,
        spec: TaskSpec,
        here: Here,
        wanted: Wanted,
    ) -> bool:
        """See to it that the model's origin is here, or can be drawn; False: it did not come."""
        if await asyncio.to_thread(self._origin, manifest, spec) is not None:
            return True
        if not manifest.origin:
            raise WireError(Reason.MALFORMED, "its origin can neither be drawn nor fetched")
        parcel = Parcel(manifest.origin, 4 * spec.params.size, manifest.chunk_bytes)
        try:
            while pieces := next_pieces([parcel], here):
                await self._window(session, [parcel], pieces, here, keep=[parcel.blob])
                if wanted() is not manifest:
                    return False
        except Silence:
            return False
        raw = joined(parcel, here[parcel.blob])
        if not _is_origin(raw, manifest, spec):
            raise WireError(Reason.MALFORMED, f"blob {parcel.blob} has another digest")
        await asyncio.to_thread(self._spool.save, origin=raw)
        await asyncio.to_thread(self._spool.drop_chunks)
        here.clear()
        return True

    def _origin(self, manifest: Manifest, spec: TaskSpec) -> Params | None:
        """The model that the lattice begins at: drawn from the task's seed, or as it was fetched.

        Nothing is left of it in memory between two walks.
        """
        if spec.init is not None:
            # the shell makes the generator, as `fedmq task create` did
            rng = np.random.default_rng(spec.init.seed)  # noqa: TID251
            drawn = initial_params(spec.params, spec.init, rng)
            if not manifest.origin or origin_name(drawn) == manifest.origin:
                return drawn
        raw = self._spool.load("origin") or b""
        kept = np.frombuffer(raw, dtype="<f4").astype(np.float32, copy=False)
        return kept if _is_origin(raw, manifest, spec) else None

    # -- the proof -------------------------------------------------------------------------

    def _proved(
        self, manifest: Manifest, spec: TaskSpec, way: str, blobs: Sequence[bytes]
    ) -> Caught:
        """Take the steps from what is here, and prove where they lead. Raises WireError."""
        sizes = sizes_of(spec.params)
        if way == "keyframe":
            q, exponents = decode_keyframe(blobs[0], sizes)
        else:
            q, exponents = self._place()
            for blob in blobs:
                q, exponents = applied(q, exponents, decode_diff(blob, sizes), sizes)
        origin = self._origin(manifest, spec)
        if origin is None:
            raise WireError(Reason.MALFORMED, "its origin is not here")
        moved = placed(travelling(spec.params, origin), q, exponents, sizes)
        params = settled_in(spec.params, origin, moved)
        if not model_digest(spec.params.digest, params).startswith(manifest.model_digest):
            raise WireError(Reason.MALFORMED, "the model has another digest")
        values = {
            "params": params.astype("<f4").tobytes(),
            "q": q.astype("<i4").tobytes(),
            "exponents": array("b", exponents).tobytes(),
        }
        return Caught(way, values)

    def _place(self) -> tuple[Ints, tuple[int, ...]]:
        """Where on the lattice the model is that is here."""
        q = np.frombuffer(self._spool.load("q") or b"", dtype="<i4").astype(np.int32, copy=False)
        return q, tuple(array("b", self._spool.load("exponents") or b""))


def _is_origin(raw: bytes, manifest: Manifest, spec: TaskSpec) -> bool:
    """Whether these are the parameters that a task's lattice begins at, as far as is told."""
    if len(raw) != 4 * spec.params.size:
        return False
    return not manifest.origin or origin_name(np.frombuffer(raw, dtype="<f4")) == manifest.origin
