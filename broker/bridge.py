"""The bridge: PUBLISH -> XADD -> PUBACK on the way up, outbox -> retained topics on the way down.

A message is acknowledged to the MQTT broker only after Redis has it, in order. Whatever goes wrong
ends the connection: unacknowledged messages come again, and what was appended twice is a
duplicate that the fold knows. Never opens an envelope.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from time import monotonic

from redis.asyncio import Redis
from redis.exceptions import RedisError

from broker.downlink import carry_downlink
from broker.queue import Queue, connect
from broker.routing import Routed, route
from broker.settings import BridgeSettings
from lifetimes.together import end, together
from mqtt_session.address import address_of
from mqtt_session.backoff import Backoff
from mqtt_session.session import Inbound, LinkError, Session, keep_connected
from mqtt_session.session import connect as connect_mqtt
from schemas.messages import Receipt
from schemas.names import Boot, Epoch, ModelVersion, TaskName
from schemas.outcomes import Reason
from schemas.topics import TaskTopics, checked_prefix, state_filter, uplink_filter
from schemas.wire import encode_receipt

log = logging.getLogger("fedmq.bridge")


async def serve(settings: BridgeSettings, *, rng: random.Random) -> None:
    """Run the bridge until cancelled."""
    checked_prefix(settings.prefix)
    token = secrets.token_hex(16)

    def door() -> AbstractAsyncContextManager[Session]:
        return connect_mqtt(settings, client_id=settings.client_id, clean=False, manual_ack=True)

    async def use(session: Session) -> None:
        try:
            async with connect(settings.redis_url) as redis:
                await _carry(session, redis, settings, token)
        except (RedisError, OSError) as exc:
            log.warning("redis_lost error=%s: connecting again", exc)
            msg = "Redis is not there"
            raise LinkError(msg) from exc

    await keep_connected(door, use, rng=rng, backoff=Backoff(0.2, 5.0))


async def _carry(session: Session, redis: Redis, settings: BridgeSettings, token: str) -> None:
    queue = Queue(redis, token)
    await queue.tasks()  # no Redis, no uplink: fail before the first message is taken
    await together(_uplink(session, queue, settings), _begin(session, queue, settings))


async def _begin(session: Session, queue: Queue, settings: BridgeSettings) -> None:
    """Subscribe, then carry the way down; the uplink beside it notices when the link ends."""
    await session.subscribe([uplink_filter(settings.prefix)], qos=1)
    log.info("connected mqtt=%s", address_of(settings))
    await _downlinks(session, queue, settings)


async def _uplink(session: Session, queue: Queue, settings: BridgeSettings) -> None:
    carried, told = 0, monotonic()
    while True:
        batch = await session.receive()
        await _lift(session, queue, settings, batch)
        carried += len(batch)
        if monotonic() - told > 10:
            log.info("uplink messages=%d", carried)
            told = monotonic()


async def _lift(
    session: Session, queue: Queue, settings: BridgeSettings, batch: list[Inbound]
) -> None:
    """Append one batch, and only then acknowledge it."""
    limit = settings.max_message_bytes
    messages = [route(settings.prefix, m.topic, m.payload, max_bytes=limit) for m in batch]
    known = await queue.append(messages)
    for message, ok in zip(messages, known, strict=True):
        if not ok and isinstance(message, Routed):
            await _refuse(session, queue, settings, message)
    session.acknowledge(batch)


async def _refuse(
    session: Session, queue: Queue, settings: BridgeSettings, message: Routed
) -> None:
    """Answer a device whose task nobody knows: the one refusal that the fold cannot make."""
    device = message.arrived.device
    log.warning("update_rejected task=%s device=%s reason=unknown_task", message.task, device)
    await queue.bury(message.task, message)
    receipt = Receipt(Epoch(0), Boot(0), 0, 0, 0, Reason.UNKNOWN_TASK, ModelVersion(0))
    topic = TaskTopics(settings.prefix, message.task).receipt(device)
    await session.publish(topic, encode_receipt(receipt))


async def _downlinks(session: Session, queue: Queue, settings: BridgeSettings) -> None:
    """Carry every task's outbox, and those of tasks that are created meanwhile."""
    running: dict[TaskName, asyncio.Task[None]] = {}
    try:
        while True:
            for task in [task for task, run in running.items() if run.done()]:
                running.pop(task).result()  # a deleted task has been cleared, or a failure is told
            names = [*await queue.tasks(), *await queue.leaving()]
            if not running.keys() >= set(names):  # who said hello before is heard once more
                await session.subscribe([state_filter(settings.prefix)], qos=0)
            for task in names:
                if task not in running:
                    carrying = carry_downlink(session, queue, task, settings)
                    running[task] = asyncio.create_task(carrying, name=f"fedmq.bridge[{task}]")
            await _first_failure(running.values(), timeout_s=1.0)
    finally:
        await end(running.values())


async def _first_failure(tasks: Collection[asyncio.Task[None]], *, timeout_s: float) -> None:
    """Wait a while, and pass on the failure of the first task that ends."""
    if not tasks:
        await asyncio.sleep(timeout_s)
        return
    done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()
