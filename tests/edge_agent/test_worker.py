"""A trainer's work in a thread: what becomes of it, and of the agent that is to end."""

import asyncio
import threading
from collections.abc import Callable
from typing import NoReturn

import pytest

from edge_agent import worker
from edge_agent.trainer import Stopped
from edge_agent.worker import anyone_left, done_aside
from tests.edge_agent.played_server import eventually


def nothing() -> None:
    """No trainer is told."""


class Round:
    """Work that ends when it is let."""

    def __init__(self, *, heeds: int = 0) -> None:
        self.began, self.let = threading.Event(), threading.Event()
        self.ended = False
        self.told = 0
        self._heeds = heeds

    def __call__(self) -> int:
        self.began.set()
        assert self.let.wait(30)
        self.ended = True
        return 7

    def stop(self) -> None:
        self.told += 1
        if self.told == self._heeds:
            self.let.set()


async def begun(work: Round) -> "asyncio.Task[int]":
    task = asyncio.create_task(done_aside(work, work.stop))
    await eventually(work.began.is_set, "it works")
    return task


async def test_what_it_returns_or_raises_is_passed_on() -> None:
    assert await done_aside(lambda: 7, nothing) == 7

    def raising(error: BaseException) -> Callable[[], NoReturn]:
        def work() -> NoReturn:
            raise error

        return work

    with pytest.raises(ValueError, match="bad data"):
        await done_aside(raising(ValueError("bad data")), nothing)
    with pytest.raises(RuntimeError):  # nobody may raise it in a coroutine; nobody waits for ever
        await done_aside(raising(StopIteration()), nothing)


async def test_who_is_cancelled_ends_when_the_work_has_ended_and_no_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker, "AGAIN_S", 0.01)
    work = Round(heeds=3)
    task = await begun(work)
    task.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended
    assert work.told == 3, "it is told until it has ended"


async def test_being_cancelled_again_hurries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "AGAIN_S", 600)
    work = Round()
    task = await begun(work)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    work.let.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_work_that_does_not_stop_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "GRACE_S", 0.05)
    work = Round()
    task = await begun(work)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "trainer_left_behind" in caplog.text
    assert anyone_left()
    work.let.set()
    await eventually(lambda: not anyone_left(), "it ends by itself")


async def test_a_stop_that_fails_is_told_and_the_work_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Round()

    def stop() -> None:
        work.let.set()
        raise KeyError("gone")

    task = asyncio.create_task(done_aside(work, stop))
    await eventually(work.began.is_set, "it works")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended
    assert "trainer_not_told" in caplog.text


async def test_work_that_stops_as_it_was_told_is_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = threading.Event()

    def work() -> None:
        assert told.wait(30)
        raise Stopped

    caplog.set_level("INFO", "fedmq.agent")
    task = asyncio.create_task(done_aside(work, told.set))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caplog.messages == []
