"""Makes sure that what Redis holds now will be there tomorrow, before anybody is told of it.

The Receipt is the only promise, so it waits here: for the disk, where Redis replies before that has
it, and for as many replicas as the operator has set. What a failover or a power cut could take back
was then never said. When the disk can be believed is decided in `broker.durability`.
"""

import asyncio
import logging
from time import monotonic
from typing import Final

from broker.durability import LOOK_S, Watch
from broker.queue import Queue
from schemas.names import TaskName

log = logging.getLogger("fedmq.bridge")

WAIT_MS: Final = 5000
"""How long replicas are waited for at a time: well below what counts as a broken connection."""


class Sure:
    """For one task, on one connection.

    Args:
        queue: of this session.
        task: whose downlink lease is kept meanwhile.
        lease_ms: for how long at a time.
        replicas: how many must have it too.
    """

    def __init__(self, queue: Queue, task: TaskName, lease_ms: int, replicas: int) -> None:
        self._queue = queue
        self._task = task
        self._lease_ms = lease_ms
        self._replicas = replicas

    async def of_all_until_now(self) -> bool:
        """Wait until it is; False when the lease is lost meanwhile.

        Raises RedisError, QueueFullError.
        """
        return await self._on_disk() and await self._on_replicas()

    async def _on_disk(self) -> bool:
        if self._queue.fsync != "everysec":
            return True
        watch = Watch(since=monotonic())
        sure = False
        while not sure:
            await asyncio.sleep(min(LOOK_S / 2, self._lease_ms / 4000))
            sure = watch.look(await self._queue.persistence(), monotonic())
            # after the look: what was seen was of the server that this session began with
            if not await self._queue.hold_downlink(self._task, self._lease_ms):
                return False
        return True

    async def _on_replicas(self) -> bool:
        told = False
        while self._replicas:
            held, count = await self._queue.hold_and_wait(
                self._task,
                self._lease_ms,
                replicas=self._replicas,
                longest_ms=max(1, min(self._lease_ms // 4, WAIT_MS)),
            )
            if not held or count >= self._replicas:
                return held
            if not told:
                missing = self._replicas - count
                log.warning("replicas_missing task=%s missing=%d: waiting", self._task, missing)
            told = True
        return True
