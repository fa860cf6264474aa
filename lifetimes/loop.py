"""The event loop that every shell here runs on."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run until it ends, on a loop that watches sockets: the MQTT client needs one.

    That is the usual loop everywhere but on Windows.
    """
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(main)
