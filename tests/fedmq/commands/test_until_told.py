"""A signal ends what runs, whatever a library does with the first cancellation."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from fedmq.commands.running import until_told

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def told_to(work) -> tuple[object, list[signal.Signals]]:
    """Run it in a loop of its own, as a command does."""
    told: list[signal.Signals] = []
    try:
        return asyncio.run(until_told(work(), told)), told
    except asyncio.CancelledError:
        return "stopped", told


def test_what_nobody_stops_gives_its_result() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert told_to(work) == (7, [])


def test_what_fails_fails() -> None:
    async def work() -> None:
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        told_to(work)


@pytest.mark.parametrize("number", ALL)
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    left: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            left.append("in order")

    assert told_to(work) == ("stopped", [number])
    assert left == ["in order"]


def test_a_cancellation_that_a_library_swallows_is_repeated() -> None:
    swallowed: list[str] = []

    async def work() -> str:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            swallowed.append("once")
        await asyncio.sleep(60)
        return "went on to the end, though told"

    assert told_to(work) == ("stopped", [signal.SIGINT])
    assert swallowed == ["once"]


def test_the_first_signal_decides_and_later_ones_change_nothing() -> None:
    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.05)

    assert told_to(work) == ("stopped", [signal.SIGTERM])
