"""The bridge: PUBLISH -> XADD -> PUBACK on the way up, outbox -> retained topics on the way down.

A message is acknowledged to the MQTT broker only after Redis has it, in order. Whatever goes wrong
ends the connection: unacknowledged messages come again, and what was appended twice is a
duplicate that the fold knows. Never opens an envelope.

Stopped, it finishes the batch in its hands, acknowledges it, and gives its leases back. Several may
work side by side, each on some shards; one of them carries a task's way down.
"""

import asyncio
import logging
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from time import monotonic
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker.busy import Crier
from broker.clerk import Clerk
from broker.downlink import Downlink
from broker.pressure import Gauge
from broker.queue import Queue, QueueFullError
from broker.routing import Asked, Cried, Message, Routed, route
from broker.settings import BridgeSettings
from lifetimes.together import end, finished, together
from mqtt_session.address import address_of
from mqtt_session.backoff import Backoff
from mqtt_session.session import Inbound, LinkError, Session, keep_connected
from mqtt_session.session import connect as connect_mqtt
from redis_session.connection import connect
from redis_session.lease import fresh_token
from schemas.messages import Receipt
from schemas.names import Boot, Epoch, ModelVersion, TaskName
from schemas.outcomes import Reason
from schemas.topics import (
    SHARDS,
    TaskTopics,
    ask_filter,
    busy_filter,
    checked_prefix,
    read_shards,
    state_filter,
    uplink_filters,
)
from schemas.wire import encode_receipt

log = logging.getLogger("fedmq.bridge")

DRAIN_S: Final = 3.0
"""How long a bridge that is stopped may take for the batch in its hands."""

AGAIN_S: Final = 0.5
"""The pause before a batch is tried again that a full Redis has refused."""

GOODBYE_S: Final = 1.0
"""How long saying that Redis is away, or giving leases back, may take."""


class Bridge:
    """One bridge process: what outlives its connections."""

    def __init__(self, settings: BridgeSettings) -> None:
        self._settings = settings
        self._prefix = checked_prefix(settings.prefix)
        self._shards = read_shards(settings.shards)
        self._token = fresh_token(settings.lease_s)
        self._gauge = Gauge(settings.slow_s, settings.log_max_bytes)
        self._crier = Crier(self._gauge, self._prefix)
        self._clerk = Clerk(self._prefix, self._shards)
        self._tasks: list[TaskName] = []

    def door(self) -> AbstractAsyncContextManager[Session]:
        """One connection: persistent on the broker, acknowledged by hand."""
        client_id = self._settings.client_id
        return connect_mqtt(self._settings, client_id=client_id, clean=False, manual_ack=True)

    async def use(self, session: Session) -> None:
        """Carry messages over one connection until it, or Redis, ends."""
        try:
            async with connect(self._settings.redis_url) as redis:
                await self._carry(session, redis)
        except (RedisError, OSError) as exc:
            log.warning("redis_lost error=%s: connecting again", exc)
            with suppress(LinkError, TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._crier.cry_away(session, self._tasks)
            msg = "Redis is not there"
            raise LinkError(msg) from exc

    async def _carry(self, session: Session, redis: Redis) -> None:
        queue = Queue(redis, self._token)
        await queue.begin()  # no Redis, no uplink: fail before the first message is taken
        if queue.fsync != "always":
            log.warning(
                "weaker_promise appendfsync=%s: what Redis loses with its machine is lost; "
                "set appendonly yes and appendfsync always",
                queue.fsync,
            )
        await together(self._uplink(session, queue), self._begin(session, queue))

    async def _begin(self, session: Session, queue: Queue) -> None:
        """Subscribe, then carry the way down; the uplink beside it notices when the link ends."""
        mine = uplink_filters(self._prefix, self._shards)
        for filters in _by_eight(mine):
            await session.subscribe(filters, qos=1)
        for filters in _by_eight(self._others(mine)):
            await session.unsubscribe(filters)
        log.info("connected mqtt=%s", address_of(self._settings))
        # what nobody heard is asked again, or goes another way: the broker need not keep it
        await session.subscribe([ask_filter(self._prefix), busy_filter(self._prefix)], qos=0)
        await together(
            self._downlinks(session, queue),
            self._watch(session, queue),
            self._clerk.serve(session, queue),
        )

    def _others(self, mine: Collection[str]) -> list[str]:
        """What an earlier life of this session, with other shards, may have subscribed to."""
        each = (uplink_filters(self._prefix, frozenset(shard)) for shard in SHARDS)
        every = {*uplink_filters(self._prefix), *(name for (name,) in each)}
        return sorted(every - set(mine))

    # -- the way up ------------------------------------------------------------------------

    async def _uplink(self, session: Session, queue: Queue) -> None:
        carried, told = 0, monotonic()
        while True:
            batch = await session.receive()
            await finished(self._lift(session, queue, batch), within_s=DRAIN_S)
            carried += len(batch)
            if monotonic() - told > 10:
                log.info("uplink messages=%d", carried)
                told = monotonic()

    async def _lift(self, session: Session, queue: Queue, batch: list[Inbound]) -> None:
        """Append one batch, and only then acknowledge it."""
        limit = self._settings.max_message_bytes
        routed = [route(self._prefix, m.topic, m.payload, max_bytes=limit) for m in batch]
        messages = [message for message in routed if self._is_for_redis(message)]
        known = await self._append(queue, messages) if messages else []
        for message, ok in zip(messages, known, strict=True):
            if not ok and isinstance(message, Routed):
                await self._refuse(session, queue, message)
        session.acknowledge(batch)

    def _is_for_redis(self, message: Message) -> bool:
        """Not what bridges say to each other, nor questions, nor what the log has no room for.

        Of the latter the device sends it again; other tasks go on meanwhile.
        """
        match message:
            case Cried(task, data):
                self._crier.hear(task, data)
                return False
            case Asked():
                self._clerk.hear(message)
                return False
            case Routed(task) if self._gauge.is_behind(task):
                self._crier.drop(task)
                return False
        return True

    async def _append(self, queue: Queue, messages: list[Message]) -> list[bool]:
        """Append a batch, trying again while Redis is full: nothing is acknowledged meanwhile."""
        while True:
            began = monotonic()
            try:
                known = await queue.append(messages)
            except QueueFullError as exc:
                log.warning("redis_full error=%s: trying again", exc)
                self._gauge.refused()
                await asyncio.sleep(AGAIN_S)
                continue
            now = monotonic()
            self._gauge.appended(now - began, now)
            return known

    async def _refuse(self, session: Session, queue: Queue, message: Routed) -> None:
        """Answer a device whose task nobody knows: the one refusal that the fold cannot make."""
        device = message.arrived.device
        log.warning("update_rejected task=%s device=%s reason=unknown_task", message.task, device)
        await queue.bury(message.task, message)
        receipt = Receipt(Epoch(0), Boot(0), 0, 0, 0, Reason.UNKNOWN_TASK, ModelVersion(0))
        topic = TaskTopics(self._prefix, message.task).receipt(device)
        await session.publish(topic, encode_receipt(receipt))

    async def _watch(self, session: Session, queue: Queue) -> None:
        """Look at Redis again and again, and tell devices when they must wait."""
        turn = 0
        try:
            while True:
                await (self._crier.say if turn % 4 else self._crier.look)(
                    session, queue, self._tasks
                )
                turn += 1
                await asyncio.sleep(AGAIN_S)
        except asyncio.CancelledError:
            await finished(self._hush(session), within_s=GOODBYE_S)
            raise

    async def _hush(self, session: Session) -> None:
        """Whoever ends lets nobody wait for it."""
        with suppress(LinkError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._crier.hush(session)

    # -- the way down ----------------------------------------------------------------------

    async def _downlinks(self, session: Session, queue: Queue) -> None:
        """Carry every task's outbox, and those of tasks that are created meanwhile."""
        running: dict[TaskName, asyncio.Task[None]] = {}
        try:
            while True:
                for task in [task for task, run in running.items() if run.done()]:
                    running.pop(task).result()  # a deleted task is cleared, or a failure is told
                self._tasks = await queue.tasks()
                names = [*self._tasks, *await queue.leaving()]
                await end([running.pop(task) for task in running.keys() - set(names)])
                if not running.keys() >= set(names):  # who said hello before is heard once more
                    await session.subscribe([state_filter(self._prefix)], qos=0)
                for task in names:
                    if task not in running:
                        carrying = Downlink(session, queue, task, self._settings).run()
                        name = f"fedmq.bridge[{task}]"
                        running[task] = asyncio.create_task(carrying, name=name)
                await _first_failure(running.values(), timeout_s=1.0)
        finally:
            await finished(_leave(running, queue), within_s=DRAIN_S)


def _by_eight(filters: Sequence[str]) -> Iterator[Sequence[str]]:
    """At most eight in a packet (AWS IoT Core)."""
    for start in range(0, len(filters), 8):
        yield filters[start : start + 8]


async def serve(settings: BridgeSettings, *, rng: random.Random) -> None:
    """Run the bridge until cancelled. Raises ConfigError."""
    bridge = Bridge(settings)
    await keep_connected(bridge.door, bridge.use, rng=rng, backoff=Backoff(0.2, 5.0))


async def _leave(running: Mapping[TaskName, asyncio.Task[None]], queue: Queue) -> None:
    """End what goes down, and give the leases back; without Redis they run out by themselves."""
    await end(running.values())
    with suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(GOODBYE_S):
            for task in running:
                await queue.release_downlink(task)


async def _first_failure(tasks: Collection[asyncio.Task[None]], *, timeout_s: float) -> None:
    """Wait a while, and pass on the failure of the first task that ends."""
    if not tasks:
        await asyncio.sleep(timeout_s)
        return
    done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
