"""Says `busy` when devices must wait, takes it back when they need not, and notes it for `metrics`.

What to say is decided in `broker.pressure`; here is the clock, the topic and the key.
"""

import logging
import time
from collections.abc import Collection
from time import monotonic

import msgspec

from broker.pressure import Gauge, pause_s
from broker.queue import Queue, QueueFullError
from mqtt_session.session import Session
from schemas.names import TaskName
from schemas.topics import TaskTopics
from schemas.watch import Busy, Pressure

log = logging.getLogger("fedmq.bridge")


class Crier:
    """What was said of every task on one connection."""

    def __init__(self, session: Session, queue: Queue, gauge: Gauge, prefix: str) -> None:
        self._session = session
        self._queue = queue
        self._gauge = gauge
        self._prefix = prefix
        self._since: dict[TaskName, float] = {}
        self._said: dict[TaskName, tuple[str, float]] = {}
        self._dropped: dict[TaskName, int] = {}

    def drop(self, task: TaskName) -> None:
        """A message was not taken, because the task's log is as large as it may be."""
        self._dropped[task] = self._dropped.get(task, 0) + 1

    async def look(self, tasks: Collection[TaskName]) -> None:
        """Weigh every task's log, and say what has changed. Raises LinkError, RedisError."""
        for task in tasks:
            self._gauge.weighed(task, await self._queue.log_bytes(task))
        await self.say(tasks)

    async def say(self, tasks: Collection[TaskName]) -> None:
        """Say what has changed since it was said. Raises LinkError, RedisError."""
        for task in tasks:
            now = monotonic()
            why = self._gauge.why(task, now)
            since = self._since.setdefault(task, now) if why else now
            known, pause = self._said.get(task, ("?", 0.0))
            if why == known and (not why or pause_s(now - since) < 2 * pause):
                continue
            await self._tell(task, why, pause_s(now - since))
            if why and known in {"", "?"}:
                log.warning("busy task=%s why=%s", task, why)
                await self._note(task, why, times=1)
            elif not why and known not in {"", "?"}:
                busy_s = now - self._since.pop(task, now)
                log.info("no_longer_busy task=%s after_s=%.1f", task, busy_s)
                await self._note(task, "", seconds=busy_s)
            elif not why and await self._left_over(task):
                await self._note(task, "")

    async def _left_over(self, task: TaskName) -> bool:
        """Whether another life of a bridge has ended while devices waited."""
        return bool((await self._queue.pressure(task)).busy)

    async def _tell(self, task: TaskName, why: str, pause: float) -> None:
        payload = b""
        if why:
            payload = msgspec.json.encode(Busy(why, pause, int(time.time() * 1000)))
        await self._session.publish(TaskTopics(self._prefix, task).busy, payload, retain=True)
        self._said[task] = why, pause

    async def _note(
        self, task: TaskName, why: str, *, times: int = 0, seconds: float = 0.0
    ) -> None:
        """For the task's metrics; what cannot be written while Redis is full is written after."""
        known = await self._queue.pressure(task)
        fresh = Pressure(
            busy=why,
            busy_times=known.busy_times + times,
            busy_s=round(known.busy_s + seconds, 3),
            dropped=known.dropped + self._dropped.pop(task, 0),
        )
        try:
            await self._queue.note_pressure(task, fresh)
        except QueueFullError:
            self._dropped[task] = fresh.dropped - known.dropped


async def cry_away(session: Session, prefix: str, tasks: Collection[TaskName]) -> None:
    """Say that Redis is not there at all. Raises LinkError."""
    payload = msgspec.json.encode(Busy("away", pause_s(0.0), int(time.time() * 1000)))
    for task in tasks:
        await session.publish(TaskTopics(prefix, task).busy, payload, retain=True)
