"""One task's way down: its outbox, carried out in order by the bridge that holds the lease.

At every connect the standing topics are asserted again (a broker may have lost them), blobs
before the manifest that names them. Carrying a record out twice changes nothing: what matters is
retained, and devices ignore a lower (epoch, version).
"""

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic
from typing import Final

from broker.queue import Queue
from broker.settings import BridgeSettings
from mqtt_session.session import Session
from schemas.names import TaskName
from schemas.outbox import End, Record, Say, Spread, Sweep
from schemas.topics import TaskTopics

log = logging.getLogger("fedmq.bridge")

WINDOW: Final = 16
"""Chunks published before their PUBACKs are awaited."""

BATCH: Final = 256
"""Outbox records read at once."""


async def carry_downlink(
    session: Session, queue: Queue, task: TaskName, settings: BridgeSettings
) -> None:
    """Carry a task's outbox until the session ends, or the task was deleted."""
    topics = TaskTopics(settings.prefix, task)
    lease_ms = round(settings.lease_s * 1000)
    while True:
        if await queue.hold_downlink(task, lease_ms):
            await _assert_standing(session, queue, task, topics)
            if await _carry_outbox(session, queue, task, topics, lease_ms):
                await queue.leave(task)
                log.info("cleared task=%s: it was deleted", task)
                return
            log.warning("downlink_lost task=%s: another bridge has the lease", task)
        await asyncio.sleep(settings.lease_s / 5)


async def _assert_standing(
    session: Session, queue: Queue, task: TaskName, topics: TaskTopics
) -> None:
    says, blobs = await queue.standing(task)
    for name, chunk_bytes in blobs.items():
        await _spread(session, queue, task, topics, Spread(name, chunk_bytes))
    for suffix, payload in says:
        await session.publish(topics.at(suffix), payload, retain=True)


async def _carry_outbox(
    session: Session, queue: Queue, task: TaskName, topics: TaskTopics, lease_ms: int
) -> bool:
    """Carry records out; True after a task's last one, False when another has the lease."""
    said = await queue.last_said(task)
    renewed = monotonic()
    while True:
        if monotonic() - renewed > lease_ms / 4000:
            if not await queue.hold_downlink(task, lease_ms):
                return False
            renewed = monotonic()
        batch = await queue.unsaid(task, said, count=BATCH, block_ms=max(1, lease_ms // 4))
        if not batch:
            continue
        for record in newest_only([record for _, record in batch]):
            if isinstance(record, End):
                return True
            await _carry_record(session, queue, task, topics, record)
        said = batch[-1][0]
        if not await queue.note_said(task, said):
            return False


def newest_only(records: Sequence[Record]) -> list[Record]:
    """Drop what a later record of the same batch replaces on the same retained topic. Pure."""
    last = {r.suffix: i for i, r in enumerate(records) if isinstance(r, Say) and r.retain}
    return [
        r
        for i, r in enumerate(records)
        if not (isinstance(r, Say) and r.retain) or last[r.suffix] == i
    ]


async def _carry_record(
    session: Session,
    queue: Queue,
    task: TaskName,
    topics: TaskTopics,
    record: Say | Spread | Sweep,
) -> None:
    match record:
        case Say(suffix, payload, retain):
            await session.publish(topics.at(suffix), payload, retain=retain)
        case Spread():
            await _spread(session, queue, task, topics, record)
        case Sweep(blob, chunks):
            empty = [(topics.chunk(blob, i), b"") for i in range(chunks)]
            await _publish_windows(session, empty)


async def _spread(
    session: Session, queue: Queue, task: TaskName, topics: TaskTopics, spread: Spread
) -> None:
    """Publish a blob in retained chunks; one that was swept meanwhile is passed over."""
    blob = await queue.blob(task, spread.blob)
    if blob is None:
        return
    size = spread.chunk_bytes
    chunks = [
        (topics.chunk(spread.blob, index), blob[start : start + size])
        for index, start in enumerate(range(0, len(blob), size))
    ]
    await _publish_windows(session, chunks)


async def _publish_windows(session: Session, messages: Sequence[tuple[str, bytes]]) -> None:
    """Publish retained messages, a window of PUBACKs at a time."""
    for start in range(0, len(messages), WINDOW):
        window = messages[start : start + WINDOW]
        await asyncio.gather(
            *(session.publish(topic, payload, retain=True) for topic, payload in window)
        )
