"""A round of a site's task, over its Redis: begin it, wait for its versions, let it rest.

Whoever reads here only reads what the site's aggregator has committed, and writes only entries of
the site's log, as every operator does.
"""

import asyncio
import threading
from collections.abc import Callable
from time import monotonic
from typing import Final, Literal, TypeVar

from redis.asyncio import Redis

from aggregator.checkpoint import SmallState, vector_to_bytes
from aggregator.state import Release
from aggregator.tasks import append_entry, kept_model, last_commit
from fedmq.region.merging import Begun, found, goes_on, ripe
from schemas.errors import ConfigError
from schemas.log import EntryId, ModelSet, PhaseSet
from schemas.names import TaskName
from schemas.params import Params, model_digest
from schemas.task import TaskSpec

_T = TypeVar("_T")

POLL_S: Final = 0.1
"""How often the last commit is looked at."""


class Stopped(ValueError):  # noqa: N818 - nothing is wrong
    """The region was told to end."""


async def spec_and_commit(redis: Redis, task: TaskName) -> tuple[TaskSpec, SmallState]:
    """The site's task as the last commit left it.

    Raises ConfigError: there is none, nobody has folded it, or it is finished.
    """
    small = await last_commit(redis, task)
    if small.spec is None:
        raise ConfigError("site_task", f"{task!r} was never folded; is its aggregator running?")
    if small.phase == "finished":
        remedy = f"{task!r} is finished: fedmq task resume it, and give it no [finish]"
        raise ConfigError("site_task", remedy)
    return small.spec, small


async def begin(redis: Redis, task: TaskName, start: Params, stop: threading.Event) -> Begun:
    """Make the upstream's parameters the site's next version.

    No version is withdrawn: who still trains on an older one is folded with its staleness weight,
    as everywhere, for its hours of training are not to be lost. The site's max_staleness bounds it;
    0 refuses them all. (ModelSet withdraws what is newer than the version it names: the newest.)

    Raises:
        Stopped: see `stop`.
        ValueError: the version is not kept any more: the site has made others too fast.
    """
    spec, small = await spec_and_commit(redis, task)
    digest = model_digest(spec.params.digest, start)
    entry = await append_entry(redis, task, ModelSet(vector_to_bytes(start), small.version))

    def after(now: SmallState) -> SmallState | None:
        return now if EntryId.parse(now.cursor) >= entry else None

    release = found((await _until(redis, task, after, stop)).releases, digest)
    if release is None or release.version <= small.version:
        msg = "the site made more versions at once than publish.keep: it is begun again"
        raise ValueError(msg)
    return Begun(release.version, digest, release.updates, small.tally.weight, small.tally.folded)


async def holds(redis: Redis, task: TaskName, begun: Begun) -> bool:
    """Whether the site still learns what this round has begun."""
    return goes_on(begun, (await last_commit(redis, task)).releases)


async def enter(redis: Redis, task: TaskName, phase: Literal["running", "paused"]) -> None:
    """Let the site's devices train, or rest until the upstream's next model is here."""
    if (await last_commit(redis, task)).phase != phase:
        await append_entry(redis, task, PhaseSet(phase))


async def learnt(
    redis: Redis,
    task: TaskName,
    begun: Begun,
    *,
    wanted: int,
    seconds: float,
    stop: threading.Event,
) -> tuple[Release, Params, SmallState]:
    """Wait for a version of so many contributions: its release, its parameters, the commit.

    When the time is over it is the newest that has any; until one has, it is waited for longer.

    Raises:
        Stopped: see `stop`.
        ValueError: somebody has rolled the site back.
    """
    until = monotonic() + seconds

    def look(now: SmallState) -> tuple[Release, SmallState] | None:
        if not goes_on(begun, now.releases):
            msg = "the site was rolled back under the round: it is begun again"
            raise ValueError(msg)
        release = ripe(begun, now.releases, wanted, in_time=monotonic() < until)
        return None if release is None else (release, now)

    while True:
        release, small = await _until(redis, task, look, stop)
        try:
            model = await kept_model(redis, task, release.version)
        except ConfigError:  # swept between the two reads: a later one is there
            await asyncio.sleep(POLL_S)
            continue
        return release, model.params, small


async def _until(
    redis: Redis, task: TaskName, look: Callable[[SmallState], _T | None], stop: threading.Event
) -> _T:
    """Look at every commit until there is something."""
    while True:
        if stop.is_set():
            msg = "the region ends"
            raise Stopped(msg)
        small = await last_commit(redis, task)
        answer = look(small)
        if answer is not None:
            return answer
        await asyncio.sleep(POLL_S)
