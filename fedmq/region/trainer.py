"""The trainer whose data is a site: its training is a round of the site's own task.

The upstream's model becomes the site's (an entry of its log), the site's devices train and its
server folds as ever, and what the site has learnt goes up as one update of so many devices.
Between two rounds the site's task is paused: what its devices learnt then would be lost with the
next model from above. What is under way at that moment still comes in, and is lost; the log says
how much.

The upstream's [train] is not handed on: the site's own holds. Its own `contributions_max` cannot be
seen from here: what it refuses is logged with the remedy (`fedmq.region.refusals`).
"""

import asyncio
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis
from redis.exceptions import RedisError

from edge_agent.trainer import TrainResult
from fedmq.region.memory import remember, remembered
from fedmq.region.merging import Begun, check_site, check_tensors, mean_weight, merged
from fedmq.region.site import begin, enter, holds, learnt, spec_and_commit
from redis_session.connection import connect
from schemas.names import TaskName, task_name
from schemas.params import Params, flatten, model_digest, unflatten
from schemas.task import TrainOptions

log = logging.getLogger("fedmq.region")


@dataclass(frozen=True, slots=True)
class Told:
    """What was returned last.

    Attributes:
        base: the upstream's parameters.
        params: the merged model.
        count: contributions in it.
        updates: that the site had folded until then.
    """

    base: Params
    params: Params
    count: int
    updates: int


class SiteTrainer:
    """A Trainer (see edge_agent.trainer) made of a site.

    An agent calls `train` in a worker thread: each call has an event loop and a Redis connection of
    its own, and any broken one ends the call; the agent's next try goes on where it was.

    Args:
        redis_url: where the site's logs are.
        task: the site's.
        contributions: of how many device contributions an update is made.
        seconds: when less have come after so long, it is made of those; of none, it is not.
        memory: a file for where the round began; None: who starts again begins a round anew.

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
    ) -> None:
        self._url = redis_url
        self._task: TaskName = task_name(task)
        self._wanted = contributions
        self._seconds = seconds
        self._memory = memory
        self._begun = remembered(memory)
        self._told: Told | None = None
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
            base, before = self._base(start)
            begun = await self._begin(redis, base, model_digest(spec.params.digest, base))
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
        self._told = Told(base, params, count, release.updates)
        log.info(
            "merged contributions=%d weight=%.3f site_version=%d", count, weight, release.version
        )
        return TrainResult(
            unflatten(spec.params, params), num_examples=count, contributions=count, weight=weight
        )

    def _base(self, start: Params) -> tuple[Params, int]:
        """The upstream's parameters, and the contributions that an unsent update has already.

        While its update is unsent an agent trains on from what it was given last: the round goes
        on, and the update that replaces the unsent one has all contributions since the base.
        """
        told = self._told
        if told is not None and start.tobytes() == told.params.tobytes():
            return told.base, told.count
        return start, 0

    async def _begin(self, redis: Redis, base: Params, digest: bytes) -> Begun:
        """Go on with the round that was begun from this base, or begin one."""
        known = self._begun
        if known is not None and known.digest == digest and await holds(redis, self._task, known):
            return known
        _, small = await spec_and_commit(redis, self._task)
        late = 0 if self._told is None else small.tally.folded - self._told.updates
        if late > 0:
            log.info("late contributions=%d: came after the last update was made, lost", late)
        self._begun = begun = await begin(redis, self._task, base, self._stop)
        remember(self._memory, begun)
        return begun
