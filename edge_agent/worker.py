"""A trainer's work, in a thread of its own that is told to stop and never holds the process.

The threads of an executor are waited for when a process ends, however long they take; a daemon is
not.
"""

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from edge_agent.trainer import Stopped

log = logging.getLogger("fedmq.agent")

_Result = TypeVar("_Result")

GRACE_S: Final = 5.0
"""How long work that was told to stop may take to end."""

AGAIN_S: Final = 0.5
"""How often it is told."""

_NAME: Final = "fedmq.trainer"


async def done_aside(work: Callable[[], _Result], stop: Callable[[], None]) -> _Result:
    """Do work in a thread and give what it returns, or raise what it raises.

    When this is cancelled `stop` is called, again and again, until the work has ended or GRACE_S
    are over; only then it obeys. Work that has not ended by then is left behind: what comes of it
    is not heeded.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    found: list[_Result] = []
    failed: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            found.append(context.run(work))
        except BaseException as exc:  # noqa: BLE001 - it is raised where it is waited for
            failed.append(exc)
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name=_NAME, daemon=True).start()
    try:
        await ended.wait()
    except asyncio.CancelledError:
        await _stopped(ended, stop)
        if failed and not isinstance(failed[0], Stopped):
            log.info("trainer_stopped error=%s", failed[0])
        raise
    if failed:
        raise failed[0]
    return found[0]


async def _stopped(ended: asyncio.Event, stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + GRACE_S
    waiting = asyncio.ensure_future(ended.wait())
    while not ended.is_set() and (left_s := until - loop.time()) > 0:
        try:
            stop()
        except Exception as exc:  # noqa: BLE001 - user's code; then it is waited for
            log.warning("trainer_not_told error=%s", exc)
        with suppress(asyncio.CancelledError):  # once is enough
            await asyncio.wait([waiting], timeout=min(AGAIN_S, left_s))
    waiting.cancel()
    if not ended.is_set():
        log.warning("trainer_left_behind: it did not stop within %g s", GRACE_S)


def anyone_left() -> bool:
    """Whether a trainer still works, though nobody waits for it any more, or will."""
    return any(thread.name == _NAME for thread in threading.enumerate())
