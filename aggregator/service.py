"""The aggregator's loop: hold, load, read, fold, commit. To be read in one sitting.

Crash-only: whatever goes wrong ends the session, and the next one starts from the last commit.
"""

import asyncio
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final, NoReturn

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from aggregator.archiver import Archiver
from aggregator.clock import LogClock
from aggregator.depot import Depot
from aggregator.fold import Fold
from aggregator.judge import Evaluate, Judge
from aggregator.peers import Peers
from aggregator.settings import AggregatorSettings
from aggregator.state import Changes, TaskState
from aggregator.store import Position, TaskStore, as_bytes
from lifetimes.together import end, finished, together
from redis_session.connection import connect, failovers, reached
from redis_session.lease import fresh_token
from schemas.keys import TASKS, TaskKeys
from schemas.log import Arrived, Body, Entry, Guided, ModelSet, Tick
from schemas.names import TaskName, task_name

log = logging.getLogger("fedmq.aggregator")

BLOCK_MS: Final = 5000
"""How long Redis may be waited for at a time: well below what counts as a broken connection."""

BATCH_ENTRIES: Final = 512
BATCH_BYTES: Final = 32 << 20
"""Bounds of what is read from the log at once."""

PUBLISHED_BYTES: Final = 64 << 20
"""A batch ends early when so many bytes of models wait for their commit."""

TIDY_S: Final = 30.0
"""How often what is kept is held within its bounds."""

GOODBYE_S: Final = 1.0
"""How long giving a task back, or one's place among the others, may take."""

LEAVE_S: Final = 10.0
"""How long ending all tasks may take."""

TROUBLE_S: Final = 5.0
"""How long a task rests whose log or checkpoint cannot be read."""


class StaleMemoryError(Exception):
    """A commit was refused: somebody else holds the task, or Redis is another one."""


class HandedOver(Exception):  # noqa: N818 - no error: another aggregator is to hold the task
    """The task is another one's share."""


async def serve(
    settings: AggregatorSettings, *, evaluators: Mapping[str, Evaluate] | None = None
) -> None:
    """Serve tasks until cancelled: one session a task, started again whenever it ends.

    `evaluators` measure the versions of the tasks they are named for.
    """
    if settings.archive_url:
        Depot(settings.archive_url)  # an impossible one is refused before anything begins
    named = settings.task_names
    peers = Peers(fresh_token(settings.lease_s), named)
    running: dict[str, asyncio.Task[None]] = {}
    async with connect(settings.redis_url) as redis:
        try:
            while True:
                known = await finished(_look_around(redis, peers), within_s=GOODBYE_S)
                wanted = named or known
                if wanted is not None:
                    gone = [running.pop(task) for task in set(running) - set(wanted)]
                    await end(gone)  # they were deleted
                for task in wanted or ():
                    if task not in running:
                        name = f"fedmq.aggregator[{task}]"
                        judge = (evaluators or {}).get(task)
                        serving = _keep_serving(TaskName(task), settings, peers, judge)
                        running[task] = asyncio.create_task(serving, name=name)
                await asyncio.sleep(min(1.0, settings.lease_s / 4))
        finally:
            await finished(_leave(redis, peers, running.values()), within_s=LEAVE_S)


async def _look_around(redis: Redis, peers: Peers) -> Sequence[str] | None:
    """All tasks, and who else is alive; None while Redis does not tell."""
    try:
        await peers.say_alive(redis)
        members = await redis.smembers(TASKS)
        return sorted(task_name(as_bytes(member).decode()) for member in members)
    except (RedisError, OSError) as exc:
        log.warning("redis_unreachable error=%s", exc)
        return None


async def _leave(redis: Redis, peers: Peers, running: Collection[asyncio.Task[None]]) -> None:
    """End every task, and let nobody wait for this process; without Redis they find out."""
    await end(running)
    with suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(GOODBYE_S):
            await peers.say_goodbye(redis)


async def _keep_serving(
    task: TaskName, settings: AggregatorSettings, peers: Peers, evaluate: Evaluate | None
) -> None:
    told = ""
    while True:
        try:
            async with connect(settings.redis_url) as redis:
                await finished(reached(redis), within_s=GOODBYE_S)
                while True:
                    waits_for = await _session(redis, task, settings, peers, evaluate)
                    if waits_for != told:
                        log.info("waiting task=%s: %s", task, waits_for)
                    told = waits_for
        except StaleMemoryError:
            log.warning("commit_refused task=%s: loading again", task)
        except (RedisError, OSError) as exc:
            log.warning("session_ended task=%s error=%s: trying again", task, exc)
        except Exception:  # one task's trouble must not stop the others
            log.exception("task_failed task=%s: trying again in %.0f s", task, TROUBLE_S)
            await asyncio.sleep(TROUBLE_S)
        await asyncio.sleep(0.3)


async def _session(
    redis: Redis,
    task: TaskName,
    settings: AggregatorSettings,
    peers: Peers,
    evaluate: Evaluate | None,
) -> str:
    """Serve a task as long as it can be; otherwise, after a moment, say what it waits for."""
    store = TaskStore(redis, TaskKeys(task), peers.token)
    if not await _hold(store, task, settings, peers):
        return "another aggregator holds it"
    try:
        loaded = await store.load()
        if loaded is None:
            await asyncio.sleep(1.0)
            return "it has not been created yet"
        state, position = loaded
        log.info("loaded task=%s version=%d cursor=%s", task, state.model.version, state.cursor)
        await _mind_failovers(redis, store, settings, state, task)
        judge = Judge(task, store, evaluate)
        judge.look(state)
        archiver = Archiver(redis, task, peers.token, settings)
        archiver.look(state.cursor)
        fold = Fold(state)
        if position.migrated:
            fold.changes.devices |= state.devices.keys()
            fold.changes.releases |= state.releases
        folding = _fold_on(
            task,
            store,
            settings,
            peers,
            fold=fold,
            position=position,
            judge=judge,
            archiver=archiver,
        )
        await together(folding, judge.run(), archiver.run())
    except (asyncio.CancelledError, HandedOver) as exc:
        await finished(_give_back(store), within_s=GOODBYE_S)
        if isinstance(exc, HandedOver):
            return "another aggregator is to hold it"
        raise
    return "its session has ended"


async def _give_back(store: TaskStore) -> None:
    """Give the lease back; without Redis it runs out by itself."""
    with suppress(RedisError, OSError):
        await store.release()


async def _hold(
    store: TaskStore, task: TaskName, settings: AggregatorSettings, peers: Peers
) -> bool:
    """Take the lease; what is another's share only when that one does not come for it."""
    pause_s = settings.lease_s / 5
    for _ in range(5):
        if peers.mine(task):
            break
        await asyncio.sleep(pause_s)
        if await store.is_held():
            return False
    if await store.hold(round(settings.lease_s * 1000)):
        return True
    await asyncio.sleep(pause_s)
    return False


async def _mind_failovers(
    redis: Redis,
    store: TaskStore,
    settings: AggregatorSettings,
    state: TaskState,
    task: TaskName,
) -> None:
    """Another server is the primary now: what the old one promised last may be lost."""
    count = await failovers(redis)
    if count is None:
        return
    wanted = settings.after_failover == "epoch"
    if await store.note_failovers(count, state, raise_epoch=wanted):
        log.warning("failover task=%s: its epoch is raised", task)


async def _fold_on(
    task: TaskName,
    store: TaskStore,
    settings: AggregatorSettings,
    peers: Peers,
    *,
    fold: Fold,
    position: Position,
    judge: Judge,
    archiver: Archiver,
) -> NoReturn:
    lease_ms = round(settings.lease_s * 1000)
    renewed, tidied, mine = monotonic(), 0.0, monotonic()
    pressure = await store.pressure()
    clock = LogClock()
    count = 16
    while True:
        if monotonic() - tidied > TIDY_S:
            await store.tidy(fold.state.cursor, settings, archived=archiver.bound)
            tidied = monotonic()
        if monotonic() - renewed > settings.lease_s / 4:
            if not await store.hold(lease_ms, run_id=position.run_id):
                raise StaleMemoryError
            renewed = monotonic()
            pressure = await store.pressure()
            mine = renewed if peers.mine(task) else mine
            if renewed - mine > settings.lease_s:  # not for one moment's view of who is alive
                raise HandedOver
        block_ms = await _until_deadline(store, fold, clock, min(lease_ms // 4, BLOCK_MS))
        entries = await store.read(fold.state.cursor, count=count, block_ms=block_ms)
        if not entries:
            continue
        await _applied(fold, entries, store, settings, position)
        changes = fold.take_changes()
        committed = await store.commit(
            fold.state,
            changes,
            position,
            log_keep_ms=round(settings.log_keep_s * 1000),
            pressure=pressure,
            archived=archiver.bound,
        )
        if committed is None:
            raise StaleMemoryError
        position = committed
        judge.look(fold.state)
        archiver.look(fold.state.cursor, sum(_bytes(entry.body) for entry in entries))
        _report(task, changes, fold.state)
        count = _next_count(entries, count)


async def _applied(
    fold: Fold,
    entries: Sequence[Entry],
    store: TaskStore,
    settings: AggregatorSettings,
    position: Position,
) -> None:
    """Fold, and keep the lease meanwhile: one entry may take long where a rule compares many."""
    quarter_s = settings.lease_s / 4
    applying = asyncio.ensure_future(
        asyncio.to_thread(_apply, fold, entries, monotonic() + quarter_s)
    )
    try:
        while not (await asyncio.wait({applying}, timeout=2 * quarter_s))[0]:
            if not await store.hold(round(settings.lease_s * 1000), run_id=position.run_id):
                raise StaleMemoryError
        applying.result()
    finally:
        applying.cancel()


async def _until_deadline(store: TaskStore, fold: Fold, clock: LogClock, longest_ms: int) -> int:
    """Milliseconds to wait for entries; a deadline that has passed becomes a Tick first."""
    deadline = fold.next_deadline_ms()
    if deadline is None:
        return longest_ms
    redis_ms = await store.now_ms()
    left = deadline - clock.now_ms(fold.state.cursor.ms, redis_ms, monotonic())
    if left > 0:
        return min(left, longest_ms)
    await store.append(Tick(), not_before_ms=deadline if redis_ms < deadline else None)
    return longest_ms


def _next_count(entries: Sequence[Entry], count: int) -> int:
    """How many entries to read next, so that a batch stays within BATCH_BYTES."""
    sizes = [_bytes(entry.body) for entry in entries]
    mean = max(1, sum(sizes) // len(sizes))
    return max(1, min(BATCH_ENTRIES, 2 * count, BATCH_BYTES // mean))


def _bytes(body: Body) -> int:
    match body:
        case Arrived(data=data) | ModelSet(params=data) | Guided(delta=data):
            return len(data)
    return 64


def _apply(fold: Fold, entries: Sequence[Entry], until: float) -> None:
    """Fold entries, but not on and on: published models wait for their commit, and the lease.

    A large model takes milliseconds a version, and the smallest updates come by the hundred.
    """
    for entry in entries:
        fold.apply(entry)
        if monotonic() > until or fold.changes.blob_bytes > PUBLISHED_BYTES:
            return


def _report(task: TaskName, changes: Changes, state: TaskState) -> None:
    for letter in changes.dead:
        log.warning(
            "update_rejected task=%s device=%s reason=%s why=%s",
            task,
            letter.device,
            letter.reason,
            letter.detail,
        )
    for event in changes.events:
        if event.event not in {"rejected", "joined"}:
            told = {k: v for k, v in msgspec.to_builtins(event).items() if k != "event"}
            facts = " ".join(f"{name}={value}" for name, value in told.items())
            log.info("%s task=%s folded=%d %s", event.event, task, state.tally.folded, facts)
