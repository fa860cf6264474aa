"""A round of a site's task, over its Redis: begin it, wait for its versions, let it rest.

Whoever reads here only reads what the site's aggregator has committed, and writes only entries of
the site's log, as every operator does.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Final, Literal, TypeVar

import numpy as np
from redis.asyncio import Redis
from redis.exceptions import WatchError

from aggregator.checkpoint import (
    SmallState,
    read_small_state,
    vector_from_bytes,
    vector_to_bytes,
)
from aggregator.state import Release
from aggregator.store import as_bytes
from aggregator.tasks import append_entry, kept_model, last_commit, no_such
from edge_agent.trainer import Stopped
from fedmq.region.merging import (
    Begun,
    Since,
    begins,
    carried_over,
    check_site,
    found,
    goes_on,
    late,
    ripe,
)
from schemas.errors import ConfigError
from schemas.keys import TaskKeys
from schemas.log import EntryId, ModelSet, PhaseSet, to_fields
from schemas.names import TaskName
from schemas.params import Params, model_digest
from schemas.task import TaskSpec

_T = TypeVar("_T")

POLL_S: Final = 0.1
"""How often the last commit is looked at."""

QUIET_S: Final = 10.0
"""How long to wait for a moment at which the whole log is folded, to begin a round at."""


async def spec_and_commit(redis: Redis, task: TaskName) -> tuple[TaskSpec, SmallState]:
    """The site's task as the last commit left it.

    Raises ConfigError: there is none, nobody has folded it, or it is finished.
    """
    small = await last_commit(redis, task)
    if small.spec is None:
        raise _never_folded(task)
    if small.phase == "finished":
        remedy = f"{task!r} is finished: fedmq task resume it, and give it no [finish]"
        raise ConfigError("site_task", remedy)
    return small.spec, small


async def begin(
    redis: Redis,
    task: TaskName,
    start: Params,
    since: Since | None,
    *,
    most: int,
    note: Callable[[Begun | None], None],
    stop: threading.Event,
) -> tuple[Begun, int]:
    """Make the upstream's parameters the site's next version, and carry over what came late.

    It is written into the log at a moment when all that stands there is folded, or not at all: so
    nothing comes between what is carried over and the new version. A log that is never still for
    QUIET_S is written into all the same.

    No version is withdrawn: who still trains on an older one is folded with its staleness weight,
    as everywhere, for its hours of training are not to be lost. The site's max_staleness bounds it;
    0 refuses them all. (ModelSet withdraws what is newer than the version it names: the newest.)

    Args:
        redis: the site's.
        task: its name.
        start: the upstream's parameters.
        since: what is to be carried over; None: nothing is known of a round before.
        most: of so many contributions; of more their mean is, for so many.
        note: told of the round before it is written, to be written down; None: it is not known
            beforehand, and of the round before nothing may go up again.
        stop: ends the wait.

    Returns:
        Where the round began, and how many contributions are lost.

    Raises:
        Stopped: see `stop`.
        ValueError: the version is not kept any more: the site has made others too fast.
    """
    until = monotonic() + QUIET_S
    while True:
        patient = monotonic() < until
        written = await _begun_in_log(
            redis, task, start, since, most=most, note=note, patient=patient
        )
        if written is not None:
            break
        await _pause(stop)
    entry, begun = written
    now = await _folded(redis, task, entry, stop)
    if not patient:  # something may have come between
        release = found(now.releases, begun.digest)
        if release is None or release.version < begun.version:
            msg = "the site made more versions at once than publish.keep: it is begun again"
            raise ValueError(msg)
        updates = release.updates - begun.carried
        begun = replace(begun, version=release.version, updates=updates)
    return begun, late(since, begun.updates + begun.carried) - begun.carried


async def _begun_in_log(
    redis: Redis,
    task: TaskName,
    start: Params,
    since: Since | None,
    *,
    most: int,
    note: Callable[[Begun | None], None],
    patient: bool,
) -> tuple[EntryId, Begun] | None:
    """Write the entry, if the log is still or nobody waits for that any more."""
    keys = TaskKeys(task)
    async with redis.pipeline(transaction=True) as pipe:
        if patient:
            await pipe.watch(keys.log)
            small = await last_commit(redis, task)
            if await redis.xrange(keys.log, min=f"({small.cursor}", count=1):
                return None
        now = await _state(redis, task)
        begun, model = _next_round(now, start, since, most)
        note(begun if patient else None)
        pipe.multi()  # type: ignore[no-untyped-call]  # redis-py has no types for it
        body = ModelSet(vector_to_bytes(model), now.small.version)
        fields: dict[Any, Any] = dict(to_fields(body))
        pipe.xadd(keys.log, fields, nomkstream=True)
        try:
            (written,) = await pipe.execute()
        except WatchError:  # something came between
            return None
    if written is None:
        raise no_such(task)
    return EntryId.parse(as_bytes(written)), begun


@dataclass(frozen=True, slots=True)
class _State:
    """A site as one commit left it: its model, and the sum that waits in its buffer."""

    small: SmallState
    spec: TaskSpec
    params: Params
    waiting: Params


async def _state(redis: Redis, task: TaskName) -> _State:
    keys = TaskKeys(task)
    pipe = redis.pipeline(transaction=True)  # one commit's, not half of the next one's
    pipe.hget(keys.checkpoint, "small")
    pipe.hmget(keys.arrays, ["params", "total"])
    raw, (params, total) = await pipe.execute()
    small = read_small_state(as_bytes(raw))
    if small.spec is None:
        raise _never_folded(task)
    now = vector_from_bytes(as_bytes(params))
    waiting = np.zeros_like(now) if total is None else vector_from_bytes(total)
    return _State(small, small.spec, now, waiting)


def _next_round(
    site: _State, start: Params, since: Since | None, most: int
) -> tuple[Begun, Params]:
    """Where the next round begins, if nothing comes before it, and with which model."""
    small, size = site.small, check_site(site.spec)
    came = late(since, small.tally.folded)
    model, carried, weight, folded = start, 0, small.tally.weight, small.tally.folded
    kept = since is not None and goes_on(since.begun, small.releases)
    if kept and came and since is not None and since.reference is not None:
        carried, weight, folded = min(came, most), since.cut.weight, since.cut.folded
        model = carried_over(
            start,
            since.reference,
            site.params,
            site.waiting,
            buffer_size=size,
            share=carried / came,
        )
    begun = Begun(
        version=small.version + 1,
        digest=model_digest(site.spec.params.digest, model),
        base=model_digest(site.spec.params.digest, start),
        updates=small.tally.folded - carried,
        weight=weight,
        folded=folded,
        carried=carried,
    )
    return begun, model


async def began(
    redis: Redis, task: TaskName, beginning: Begun, stop: threading.Event
) -> bool | None:
    """Whether a round has begun that a region was about to begin when it ended.

    None: it cannot be told any more. Raises Stopped: see `stop`.
    """
    newest = await redis.xrevrange(TaskKeys(task).log, count=1)
    if newest:  # all that was ever written is folded first
        small = await _folded(redis, task, EntryId.parse(as_bytes(newest[0][0])), stop)
    else:
        small = await last_commit(redis, task)
    return begins(beginning, small.releases, small.version)


async def holds(redis: Redis, task: TaskName, begun: Begun) -> bool:
    """Whether the site still learns what this round has begun."""
    return goes_on(begun, (await last_commit(redis, task)).releases)


async def enter(redis: Redis, task: TaskName, phase: Literal["running", "paused"]) -> None:
    """Let the site's devices train, or rest until the upstream's next model is here.

    Where it does already the entry changes nothing; the last commit may not know of the last one.
    """
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


async def _folded(
    redis: Redis, task: TaskName, entry: EntryId, stop: threading.Event
) -> SmallState:
    """The first commit that has an entry."""

    def after(now: SmallState) -> SmallState | None:
        return now if EntryId.parse(now.cursor) >= entry else None

    return await _until(redis, task, after, stop)


async def _until(
    redis: Redis, task: TaskName, look: Callable[[SmallState], _T | None], stop: threading.Event
) -> _T:
    """Look at every commit until there is something."""
    while True:
        small = await last_commit(redis, task)
        answer = look(small)
        if answer is not None:
            return answer
        await _pause(stop)


async def _pause(stop: threading.Event) -> None:
    if stop.is_set():
        msg = "the region ends"
        raise Stopped(msg)
    await asyncio.sleep(POLL_S)


def _never_folded(task: TaskName) -> ConfigError:
    remedy = f"{task!r} was never folded; is its aggregator running?"
    return ConfigError("site_task", remedy)
