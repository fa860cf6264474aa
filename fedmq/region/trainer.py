"""The trainer whose data is a site: its training is a round of the site's own task.

The upstream's model becomes the site's (an entry of its log), the site's devices train and its
server folds as ever, and what the site has learnt goes up as one update of so many devices.
Between two rounds the site's task is paused, so that its devices wait for the next model. What is
under way at that moment still comes in: the next round carries it over, and the log says how much.

No contribution goes up twice. What an update is made of is noted before the outbox gets it, and
the outbox counts what it takes: so it is known what went up whenever a process died, and whichever
model the upstream comes back to.

The upstream's [train] is not handed on: the site's own holds. Its own `contributions_max` cannot be
seen from here: what it refuses is logged with the remedy (`fedmq.region.refusals`).
"""

import asyncio
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis
from redis.exceptions import RedisError

from aggregator.tasks import kept_model
from edge_agent.trainer import TrainResult
from fedmq.region.memory import remember, remembered
from fedmq.region.merging import (
    Begun,
    Cut,
    Kept,
    Since,
    check_site,
    check_tensors,
    mean_weight,
    merged,
    settled,
)
from fedmq.region.site import began, begin, enter, holds, learnt, spec_and_commit
from redis_session.connection import connect
from schemas.errors import ConfigError
from schemas.names import Boot, Seq, TaskName, task_name
from schemas.params import Params, flatten, model_digest, unflatten
from schemas.task import TaskSpec, TrainOptions

log = logging.getLogger("fedmq.region")

_LOST: Final = (
    "more than one update takes, or the site was rolled back, or kept too few versions; raise"
    " --contributions or the site's publish.keep, or lower its pace.concurrency"
)


class Outbox(Protocol):
    """What a region needs of the disk that keeps its updates: a Spool is one."""

    boot: Boot

    @property
    def created(self) -> int:
        """Updates that it has ever taken."""

    @property
    def next_seq(self) -> Seq:
        """The number that the next one of this life gets."""

    def is_unsent(self, boot: Boot, seq: Seq) -> bool:
        """Whether an update waits and was never given to the network."""


class _Trusted:
    """Stands for an outbox that nobody named: it takes whatever it is given, and sends nothing."""

    def __init__(self) -> None:
        self.boot = Boot(1)
        self.created = 0

    @property
    def next_seq(self) -> Seq:
        return Seq(self.created + 1)

    def is_unsent(self, _boot: Boot, _seq: Seq) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Made:
    """What was returned last.

    Attributes:
        base: the upstream's parameters.
        params: the merged model.
        site: the site's, of which it is merged.
        count: contributions in it.
        cut: up to where they are in it.
    """

    base: Params
    params: Params
    site: Params
    count: int
    cut: Cut


class SiteTrainer:
    """A Trainer (see edge_agent.trainer) made of a site.

    An agent calls `train` in a worker thread: each call has an event loop and a Redis connection of
    its own, and any broken one ends the call; the agent's next try goes on where it was.

    Args:
        redis_url: where the site's logs are.
        task: the site's.
        contributions: of how many device contributions an update is made.
        seconds: when less have come after so long, it is made of those; of none, it is not.
        memory: a file for where the round stands; None: who starts again begins a round anew.
        outbox: where the updates go; None: whatever is returned counts as gone up.

    Raises:
        ConfigError: the task is no name.
    """

    def __init__(
        self,
        redis_url: str,
        task: str,
        contributions: int = 10,
        seconds: float = 600.0,
        memory: Path | None = None,
        *,
        outbox: Outbox | None = None,
    ) -> None:
        self._url = redis_url
        self._task: TaskName = task_name(task)
        self._wanted = contributions
        self._seconds = seconds
        self._memory = memory
        self._kept = remembered(memory)
        self._trusted = _Trusted()
        self._outbox: Outbox = self._trusted if outbox is None else outbox
        self._made: Made | None = None
        self._from: tuple[bytes, Params] | None = None
        self._stop = threading.Event()

    def stop(self) -> None:
        """Let a `train` that waits end, from any thread."""
        self._stop.set()

    async def check(self) -> None:
        """Look at the site before anything is begun.

        Raises ConfigError: no such task, or one whose deltas cannot be read off its model.
        """
        async with connect(self._url) as redis:
            spec, _ = await spec_and_commit(redis, self._task)
            check_site(spec)

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,  # noqa: ARG002 - the site's own [train] holds
        rng: "np.random.Generator",  # noqa: ARG002 - nothing is drawn here
    ) -> TrainResult:
        """One round of the site: its merged model, of how many devices, with which mean weight.

        `num_examples` is the number of contributions: what the devices had is not known here. An
        upstream that weighs by examples (examples_unit) has its sites do that, and does not itself.

        Raises:
            ConfigError: the site's task does not fit; what is to be changed.
            ValueError: the site's Redis does not answer, or the round must be begun again.
        """
        try:
            return asyncio.run(self._round(tensors))
        except RedisError as exc:
            msg = f"the site's redis does not answer ({exc}); is it running?"
            raise ValueError(msg) from exc

    async def _round(self, tensors: Mapping[str, NDArray[np.float32]]) -> TrainResult:
        async with connect(self._url) as redis:
            spec, _ = await spec_and_commit(redis, self._task)
            size = check_site(spec)
            check_tensors(spec.params, tensors)
            start = flatten(spec.params, tensors)
            known = await self._known(redis)
            grows = self._unsent(known, start)
            base = start if grows is None else grows.base
            begun = await self._begin(redis, spec, base, known, grows=grows is not None)
            same = grows is not None and known is not None and known.begun == begun
            before = grows.count if grows is not None and same else 0
            await enter(redis, self._task, "running")
            release, now, commit = await learnt(
                redis,
                self._task,
                begun,
                wanted=before + self._wanted,
                seconds=self._seconds,
                stop=self._stop,
            )
            await enter(redis, self._task, "paused")
        count = release.updates - begun.updates
        weight = mean_weight(begun, commit.tally)
        params = merged(base, now, buffer_size=size, contributions=count)
        cut = Cut(release.version, release.updates, commit.tally.weight, commit.tally.folded)
        self._offer(cut)
        self._made = Made(base, params, now, count, cut)
        log.info(
            "merged contributions=%d weight=%.3f site_version=%d", count, weight, release.version
        )
        return TrainResult(
            unflatten(spec.params, params), num_examples=count, contributions=count, weight=weight
        )

    # -- what is known of the round before --------------------------------------------------

    async def _known(self, redis: Redis) -> Kept | None:
        """Where the round stands, whatever ended the last call; None: nothing is known of it."""
        kept = self._kept
        known = None if kept is None else settled(kept, self._outbox.created)
        if kept is not None and known is None:
            log.warning("the outbox has taken other updates: the site's round is begun anew")
        if known is not None and known.beginning is not None:
            match await began(redis, self._task, known.beginning, self._stop):
                case True:
                    known = Kept(known.beginning, known.created)
                case False:
                    known = replace(known, beginning=None)
                case None:
                    log.warning("lost contributions: the site went on without the region")
                    known = None
        if known != kept:
            self._keep(known)
        return known

    def _unsent(self, known: Kept | None, start: Params) -> Made | None:
        """The update that is made anew with more contributions; None: `start` is the upstream's.

        While its update is unsent an agent trains on from what it was given last: the round goes
        on, and the update that replaces the unsent one has all contributions since the base. The
        parameters alone do not tell: the upstream's next model may be just the one that went up.
        """
        made, outbox = self._made, self._outbox
        if made is None or known is None or known.told != made.cut:
            return None
        if start.tobytes() != made.params.tobytes():
            return None
        return made if outbox.is_unsent(outbox.boot, Seq(outbox.next_seq - 1)) else None

    async def _begin(
        self, redis: Redis, spec: TaskSpec, base: Params, known: Kept | None, *, grows: bool
    ) -> Begun:
        """Go on with the round that was begun from this base, or begin one.

        One of which an update is in the outbox goes on only to grow that.
        """
        digest = model_digest(spec.params.digest, base)
        same = known is not None and known.begun.base == digest and (grows or known.told is None)
        if known is not None and same and await holds(redis, self._task, known.begun):
            self._from = digest, base
            return known.begun
        since = None if known is None else await self._since(redis, known)
        begun, lost = await begin(
            redis,
            self._task,
            base,
            since,
            most=self._wanted + check_site(spec) - 1,
            note=self._about_to,
            stop=self._stop,
        )
        self._from = digest, base
        self._keep(Kept(begun, self._outbox.created))
        if begun.carried:
            log.info("late contributions=%d: carried over to the next update", begun.carried)
        if lost:
            log.warning("lost contributions=%d: %s", lost, _LOST)
        return begun

    async def _since(self, redis: Redis, known: Kept) -> Since:
        """From where on contributions have not gone up, and the site's model there."""
        begun, told = known.begun, known.told
        if told is not None:
            if self._made is not None and self._made.cut == told:
                return Since(begun, told, self._made.site)
            return Since(begun, told, await self._model(redis, told.version))
        if self._from is not None and self._from[0] == begun.base:
            cut = Cut(begun.version, begun.updates, begun.weight, begun.folded)
            return Since(begun, cut, self._from[1])
        if begun.carried:  # the site's model has it in it, and who can tell it apart has ended
            log.warning("lost contributions=%d: the region ended in two rounds", begun.carried)
        cut = Cut(begun.version, begun.updates + begun.carried, begun.weight, begun.folded)
        return Since(begun, cut, await self._model(redis, begun.version))

    async def _model(self, redis: Redis, version: int) -> Params | None:
        """The site's model of a version, if it is kept."""
        try:
            return (await kept_model(redis, self._task, version)).params
        except ConfigError:
            return None

    # -- what is noted ------------------------------------------------------------------------

    def _about_to(self, begun: Begun | None) -> None:
        """Note that a round is about to begin; None: from now on nothing is known."""
        if begun is None:
            self._keep(None)
        elif self._kept is not None:
            self._keep(replace(self._kept, beginning=begun))

    def _offer(self, cut: Cut) -> None:
        """Note of what an update is made, before the outbox gets it."""
        assert self._kept is not None  # noqa: S101 - a round has begun
        self._keep(replace(self._kept, offered=cut, created=self._outbox.created))
        self._trusted.created += 1

    def _keep(self, kept: Kept | None) -> None:
        remember(self._memory, kept)
        self._kept = kept
