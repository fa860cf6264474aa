"""One task's way down: its outbox, carried out in order by the bridge that holds the lease.

At every connect the standing topics are asserted again (a broker may have lost them), blobs
before the manifest that names them. Carrying a record out twice changes nothing: what matters is
retained, and devices ignore a lower (epoch, version). Nothing is said of what Redis could still
lose: `broker.sure` waits until it cannot.
"""

import asyncio
import logging
from collections.abc import Sequence
from itertools import groupby
from time import monotonic
from typing import Final, TypeAlias

from broker.queue import Queue, QueueFullError
from broker.settings import BridgeSettings
from broker.sure import Sure
from lifetimes.together import together
from mqtt_session.session import Session
from schemas.names import TaskName
from schemas.outbox import End, Record, Say, Spread, Sweep
from schemas.topics import TaskTopics

log = logging.getLogger("fedmq.bridge")

WINDOW: Final = 16
"""Messages published before their PUBACKs are awaited."""

BATCH: Final = 4096
"""Outbox records read at once: what has gathered while a slow disk was waited for."""


BLOCK_MS: Final = 5000
"""How long Redis may be waited for at a time: well below what counts as a broken connection."""


Published: TypeAlias = tuple[str, bytes, bool]
"""Topic, payload, and whether it is retained."""


class LostLeaseError(Exception):
    """Another bridge carries the task's way down now; not one more word of it."""


class Downlink:
    """One task's way down, over one connection."""

    def __init__(
        self, session: Session, queue: Queue, task: TaskName, settings: BridgeSettings
    ) -> None:
        self._session = session
        self._queue = queue
        self._task = task
        self._topics = TaskTopics(settings.prefix, task)
        self._lease_s = settings.lease_s
        self._lease_ms = round(settings.lease_s * 1000)
        self._sure = Sure(queue, task, self._lease_ms, settings.wait_replicas)
        self._until = 0.0
        self._again = False
        self._ended = False

    async def run(self) -> None:
        """Carry the outbox until the session ends, or the task was deleted."""
        while True:
            try:
                if await self._hold():
                    await together(self._keep_lease(), self._carry_all())
                    if self._ended:
                        await self._queue.leave(self._task)
                        log.info("cleared task=%s: it was deleted", self._task)
                        return
            except LostLeaseError:
                log.warning("downlink_lost task=%s: another bridge has the lease", self._task)
                # what was under way just now may have overwritten what the other one has said
                await self._queue.ask_again(self._task)
            except QueueFullError as exc:
                log.warning("redis_full task=%s error=%s: nothing goes down", self._task, exc)
            await asyncio.sleep(self._lease_s / 5)

    # -- the lease -------------------------------------------------------------------------

    async def _hold(self) -> bool:
        began = monotonic()
        held = await self._queue.hold_downlink(self._task, self._lease_ms)
        if held:
            self._until = began + self._lease_s
        return held

    async def _keep_lease(self) -> None:
        """Renew the lease, whatever is carried meanwhile, until it is lost."""
        while await self._hold():
            self._again = self._again or await self._queue.is_asked_again(self._task)
            await asyncio.sleep(self._lease_s / 4)
        raise LostLeaseError

    def _check(self) -> None:
        """Before every word: is it still ours to say? Raises LostLeaseError."""
        if monotonic() >= self._until:
            raise LostLeaseError

    # -- what goes down --------------------------------------------------------------------

    async def _carry_all(self) -> None:
        """Say what must be retained, then carry the outbox, until the task's last record."""
        await self._assert_standing()
        while not self._ended:
            if self._again:
                self._again = False
                await self._assert_standing()
            await self._carry_outbox()

    async def _assert_standing(self) -> None:
        """Read, then make sure, then say: nothing newer slips in between."""
        says, blobs = await self._queue.standing(self._task)
        await self._make_sure()
        await self._carry([Spread(name, chunk_bytes) for name, chunk_bytes in blobs.items()])
        await self._carry([Say(suffix, payload, retain=True) for suffix, payload in says])

    async def _make_sure(self) -> None:
        if not await self._sure.of_all_until_now():
            raise LostLeaseError

    async def _carry_outbox(self) -> None:
        """Carry the next records out, if some come within a moment."""
        queue, task = self._queue, self._task
        said = await queue.last_said(task)
        block_ms = max(1, min(self._lease_ms // 4, BLOCK_MS))
        batch = await queue.unsaid(task, said, count=BATCH, block_ms=block_ms)
        if not batch:
            return
        await self._make_sure()
        for kind, group in groupby(newest_only([record for _, record in batch]), key=type):
            records = list(group)
            if kind is End:
                self._ended = True
                return
            await self._carry(records)
        if not await queue.note_said(task, batch[-1][0]):
            raise LostLeaseError

    async def _carry(self, records: Sequence[Record]) -> None:
        """Carry records of one kind in their order, a window of PUBACKs at a time.

        A window holds chunks of several blobs: small ones cost no round trip each.
        """
        waiting: list[Published] = []
        for record in records:
            waiting += await self._messages(record)
            full = len(waiting) - len(waiting) % WINDOW
            await self._publish(waiting[:full])
            del waiting[:full]
        await self._publish(waiting)

    async def _messages(self, record: Record) -> list[Published]:
        match record:
            case Say(suffix, payload, retain):
                return [(self._topics.at(suffix), payload, retain)]
            case Spread(blob, chunk_bytes):
                return await self._chunks(blob, chunk_bytes)
            case Sweep(blob, chunks):
                return [(self._topics.chunk(blob, i), b"", True) for i in range(chunks)]
            case End():
                return []

    async def _chunks(self, name: str, size: int) -> list[Published]:
        """A blob in retained chunks; one that was swept meanwhile is passed over."""
        blob = await self._queue.blob(self._task, name)
        if blob is None:
            return []
        return [
            (self._topics.chunk(name, index), blob[start : start + size], True)
            for index, start in enumerate(range(0, len(blob), size))
        ]

    async def _publish(self, messages: Sequence[Published]) -> None:
        """Publish messages, a window at a time, as long as the lease is ours."""
        for start in range(0, len(messages), WINDOW):
            self._check()
            window = messages[start : start + WINDOW]
            await asyncio.gather(
                *(
                    self._session.publish(topic, payload, retain=retain)
                    for topic, payload, retain in window
                )
            )


def newest_only(records: Sequence[Record]) -> list[Record]:
    """Drop what a later record of the same batch replaces on the same retained topic. Pure."""
    last = {r.suffix: i for i, r in enumerate(records) if isinstance(r, Say) and r.retain}
    return [
        r
        for i, r in enumerate(records)
        if not (isinstance(r, Say) and r.retain) or last[r.suffix] == i
    ]
