"""Answers devices that ask for one diff in place of several, beside the way up and never before it.

A question waits in a short line, whose end is nobody's loss: a device that hears nothing goes
another way. Each bridge answers the devices of its own shards, so one bridge answers each; two that
have the same shard say the same twice, which changes nothing. It needs no lease.
"""

import asyncio
import logging
from collections.abc import Collection
from time import monotonic
from typing import Final

from broker.asking import (
    BLOBS_BYTES_MOST,
    PARAMS_MOST,
    REPLY_BYTES_MOST,
    Recent,
    Turns,
    names,
    one_diff,
)
from broker.queue import Queue
from broker.routing import Asked
from mqtt_session.session import Session
from schemas.asking import Question, Reply, decode_ask, encode_reply
from schemas.errors import ConfigError, WireError
from schemas.lattice import sizes_of
from schemas.names import TaskName, shard_of
from schemas.outcomes import Reason
from schemas.task import spec_from_json
from schemas.topics import TaskTopics

log = logging.getLogger("fedmq.bridge")

WAITING: Final = 64
"""Questions in the line; one more is not heard."""


class Clerk:
    """What answers for one bridge; `session` and `queue` are of the connection of the moment.

    Args:
        prefix: of the topics.
        shards: whose devices it answers.

    Attributes:
        answered: questions.
        refused: garbage, too many, and what could not be had.
    """

    def __init__(self, prefix: str, shards: Collection[str]) -> None:
        self.answered = 0
        self.refused = 0
        self._prefix = prefix
        self._shards = frozenset(shards)
        self._line: asyncio.Queue[Asked] = asyncio.Queue(WAITING)
        self._turns = Turns()
        self._recent = Recent()
        self._sizes: dict[TaskName, tuple[bytes, tuple[int, ...]]] = {}

    def hear(self, asked: Asked) -> None:
        """Let a question stand in the line, if it is ours and there is room. Never waits."""
        if shard_of(asked.device) not in self._shards:
            return
        if not self._turns.take(asked.task, asked.device, monotonic()):
            self._refuse(asked, "it asks too often")
        elif self._line.full():
            self._refuse(asked, "too many ask")
        else:
            self._line.put_nowait(asked)

    async def serve(self, session: Session, queue: Queue) -> None:
        """Answer one after the other, for ever. Raises RedisError, LinkError."""
        while True:
            asked = await self._line.get()
            try:
                ask = decode_ask(asked.data)
                diff = await self._diff(queue, asked.task, ask)
            except (WireError, ConfigError) as exc:
                self._refuse(asked, str(exc))
                continue
            topic = TaskTopics(self._prefix, asked.task).reply(asked.device)
            await session.publish(topic, encode_reply(Reply(ask.epoch, ask.first, ask.last, diff)))
            self.answered += 1

    def _refuse(self, asked: Asked, why: str) -> None:
        self.refused += 1
        log.debug("ask_refused task=%s device=%s why=%s", asked.task, asked.device, why)

    async def _diff(self, queue: Queue, task: TaskName, ask: Question) -> bytes:
        """The diff, merged now or lately. Raises WireError, ConfigError."""
        if found := self._recent.find((task, ask)):
            return found
        sizes = await self._sizes_of(queue, task)
        blobs = await queue.blobs(task, names(ask), most=BLOBS_BYTES_MOST)
        if blobs is None:
            raise WireError(Reason.BAD_NUMBER, "its diffs are not here, or too long together")
        diff = await asyncio.to_thread(one_diff, blobs, sizes)
        if len(diff) > REPLY_BYTES_MOST:
            raise WireError(Reason.OVERSIZED, f"{len(diff)} bytes are too long for one message")
        self._recent.keep((task, ask), diff)
        return diff

    async def _sizes_of(self, queue: Queue, task: TaskName) -> tuple[int, ...]:
        """The sizes of a task's tensors; its specification is read again when it is another."""
        raw = await queue.spec(task)
        if raw is None:
            self._sizes.pop(task, None)
            raise WireError(Reason.UNKNOWN_TASK, "there is no such task")
        known = self._sizes.get(task)
        if known is None or known[0] != raw:
            params = (await asyncio.to_thread(spec_from_json, raw)).params
            if params.size > PARAMS_MOST:
                raise WireError(Reason.OVERSIZED, f"{params.size} parameters are too many")
            known = self._sizes[task] = raw, sizes_of(params)
        return known[1]
