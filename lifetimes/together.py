"""Tasks that live and die together, and whose cancellation is never lost.

A library may swallow a cancellation that meets the answer it waited for (asyncio.wait_for does so
in Python 3.11), and a TaskGroup cancels only once: then one child lives on and everything waits
for it. Here the cancellation is repeated until it is obeyed.
"""

import asyncio
from collections.abc import Collection, Coroutine
from typing import Any, Final, TypeVar

_Result = TypeVar("_Result")

AGAIN_S: Final = 0.5
"""How long a cancelled task has to end before it is cancelled again."""


async def together(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run until the first ends or fails, cancel the others, and pass its failure on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end(tasks)
    for task in done:
        task.result()


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks until all have ended; their failures count as seen.

    A cancellation of the caller in the meantime waits until then: no child is left behind.
    """
    interrupted: asyncio.CancelledError | None = None
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        try:
            await asyncio.wait(pending, timeout=AGAIN_S)
        except asyncio.CancelledError as exc:
            interrupted = exc
    for task in tasks:
        if not task.cancelled():
            task.exception()
    if interrupted:
        raise interrupted


async def finished(coroutine: Coroutine[Any, Any, _Result], *, within_s: float) -> _Result:
    """Run to the end though cancelled meanwhile, but not longer than this; then obey.

    For what is better not left half done. Cancelling again does not hurry it.
    """
    task = asyncio.ensure_future(coroutine)
    loop = asyncio.get_running_loop()
    interrupted: asyncio.CancelledError | None = None
    until = float("inf")
    while not task.done() and loop.time() < until:
        patience = None if interrupted is None else max(0.0, until - loop.time())
        try:
            await asyncio.wait([task], timeout=patience)
        except asyncio.CancelledError as exc:
            if interrupted is None:
                until = loop.time() + within_s
            interrupted = exc
    if interrupted is not None:
        await end([task])
        raise interrupted
    return task.result()
