"""Says `busy` when devices must wait, takes it back when they need not, and notes it for `metrics`.

What to say is decided in `broker.pressure`; here is the clock, the topic and the key.
"""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from time import monotonic
from typing import Final

import msgspec

from broker.pressure import Gauge, pause_s
from broker.queue import Queue, QueueFullError
from mqtt_session.session import Session
from schemas.names import TaskName
from schemas.topics import TaskTopics
from schemas.watch import Busy, Pressure

log = logging.getLogger("fedmq.bridge")


FORGOTTEN: Final = 3.0
"""After so many of its pauses without a word who said `busy` is gone: another takes it back."""

AWAY_PAUSE_S: Final = 5.0
"""The pause while Redis is not there at all."""


@dataclass(slots=True)
class Said:
    """What this process has said last of a task.

    Attributes:
        why: the word; empty: as usual.
        payload: the message.
        at_s: when, by the monotonic clock.
        since_s: since when it has been busy.
    """

    why: str
    payload: bytes
    at_s: float
    since_s: float


class Crier:
    """Says it for one bridge process; `session` and `queue` are of the connection of the moment.

    A bridge that ends while devices wait leaves its word retained. So every bridge listens: one
    that is well takes back what nobody has repeated for long.
    """

    def __init__(self, gauge: Gauge, prefix: str) -> None:
        self._gauge = gauge
        self._prefix = prefix
        self._said: dict[TaskName, Said] = {}
        self._heard: dict[TaskName, tuple[float, float]] = {}
        self._dropped: dict[TaskName, int] = {}

    def drop(self, task: TaskName) -> None:
        """A message was not taken, because the task's log is as large as it may be."""
        self._dropped[task] = self._dropped.get(task, 0) + 1

    def hear(self, task: TaskName, payload: bytes) -> None:
        """Note what a bridge says, this one's own words aside."""
        own = self._said.get(task)
        if own is not None and own.payload == payload:
            return
        try:
            busy = msgspec.json.decode(payload, type=Busy) if payload else None
        except (msgspec.DecodeError, UnicodeDecodeError):
            busy = Busy("", AWAY_PAUSE_S, 0)  # whatever it is, it is to be taken back
        if busy is None:
            self._heard.pop(task, None)
        else:
            self._heard[task] = monotonic(), busy.pause_s

    async def look(self, session: Session, queue: Queue, tasks: Collection[TaskName]) -> None:
        """Weigh Redis and every task's log, and say what has changed.

        Raises LinkError, RedisError.
        """
        self._gauge.keep_only(tasks)
        self._gauge.filled(*await queue.memory())
        for known in (self._said, self._heard, self._dropped):
            for task in known.keys() - set(tasks):
                del known[task]  # it was deleted
        for task in tasks:
            self._gauge.weighed(task, await queue.log_bytes(task))
        await self.say(session, queue, tasks)

    async def say(self, session: Session, queue: Queue, tasks: Collection[TaskName]) -> None:
        """Say what has changed since it was said. Raises LinkError, RedisError."""
        for task in tasks:
            now = monotonic()
            why = self._gauge.why(task, now)
            last = self._said.get(task)
            if why:
                await self._cry(session, queue, task, why, now)
            elif last is not None and last.why:
                await self._tell(session, task, "", now)
                log.info("no_longer_busy task=%s after_s=%.1f", task, now - last.since_s)
                away = last.why == "away"  # nothing could be noted then
                await self._note(queue, task, "", times=int(away), seconds=now - last.since_s)
            elif self._is_forgotten(task, now):
                await self._tell(session, task, "", now)
                self._heard.pop(task)
                await self._note(queue, task, "")

    async def hush(self, session: Session) -> None:
        """Take back what this process has said: it ends. Raises LinkError."""
        for task, last in list(self._said.items()):
            if last.why:
                await self._tell(session, task, "", monotonic())

    async def cry_away(self, session: Session, tasks: Collection[TaskName]) -> None:
        """Say that Redis is not there at all. Raises LinkError."""
        for task in tasks:
            await self._tell(session, task, "away", monotonic(), AWAY_PAUSE_S)

    def _is_forgotten(self, task: TaskName, now: float) -> bool:
        if task not in self._heard:
            return False
        at_s, pause = self._heard[task]
        return now - at_s > FORGOTTEN * pause

    async def _cry(
        self, session: Session, queue: Queue, task: TaskName, why: str, now: float
    ) -> None:
        """Say it, and again now and then, so that others know that it holds."""
        last = self._said.get(task)
        since = last.since_s if last is not None and last.why else now
        pause = pause_s(now - since)
        if last is not None and last.why == why and now - last.at_s < pause:
            return
        await self._tell(session, task, why, now, pause)
        if last is None or not last.why:
            log.warning("busy task=%s why=%s", task, why)
            await self._note(queue, task, why, times=1)

    async def _tell(
        self, session: Session, task: TaskName, why: str, now: float, pause: float = 0.0
    ) -> None:
        payload = b""
        if why:
            payload = msgspec.json.encode(Busy(why, pause, int(time.time() * 1000)))
        last = self._said.get(task)
        since = last.since_s if last is not None and last.why else now
        self._said[task] = Said(why, payload, now, since)
        await session.publish(TaskTopics(self._prefix, task).busy, payload, retain=True)

    async def _note(
        self, queue: Queue, task: TaskName, why: str, *, times: int = 0, seconds: float = 0.0
    ) -> None:
        """For the task's metrics; what cannot be written while Redis is full is written after."""
        known = await queue.pressure(task)
        fresh = Pressure(
            busy=why,
            busy_times=known.busy_times + times,
            busy_s=round(known.busy_s + seconds, 3),
            dropped=known.dropped + self._dropped.pop(task, 0),
        )
        try:
            await queue.note_pressure(task, fresh)
        except QueueFullError:
            self._dropped[task] = fresh.dropped - known.dropped
