import asyncio

import pytest

from lifetimes import together as module
from lifetimes.together import end, finished, together


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.02)


class Child:
    """A coroutine that can be told to end, and remembers how it ended."""

    def __init__(self, *, swallows: int = 0) -> None:
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.fails: Exception | None = None
        self.cancelled = 0
        self.ended = False
        self._swallows = swallows

    async def live(self) -> None:
        self.started.set()
        try:
            while not self.go.is_set():
                try:
                    await self.go.wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    if self.cancelled > self._swallows:
                        raise
            if self.fails is not None:
                raise self.fails
        finally:
            self.ended = True


async def all_started(*children: Child) -> None:
    await asyncio.gather(*(child.started.wait() for child in children))


async def soon(awaitable) -> None:
    """Bound what would hang if the code were wrong."""
    async with asyncio.timeout(10):
        await awaitable


async def test_the_first_failure_ends_all_and_is_passed_on() -> None:
    children = [Child() for _ in range(3)]
    running = asyncio.ensure_future(together(*(child.live() for child in children)))
    await soon(all_started(*children))
    children[1].fails = ValueError("first")
    children[1].go.set()
    with pytest.raises(ValueError, match="first"):
        await soon(running)
    assert all(child.ended for child in children)
    assert [child.cancelled for child in children] == [1, 0, 1]


async def test_the_first_end_ends_all_and_is_no_failure() -> None:
    children = [Child(), Child()]
    running = asyncio.ensure_future(together(*(child.live() for child in children)))
    await soon(all_started(*children))
    children[0].go.set()
    await soon(running)
    assert all(child.ended for child in children)


async def test_a_child_that_swallows_its_cancellation_is_cancelled_again() -> None:
    stubborn, other = Child(swallows=3), Child()
    running = asyncio.ensure_future(together(stubborn.live(), other.live()))
    await soon(all_started(stubborn, other))
    other.fails = ValueError("first")
    other.go.set()
    with pytest.raises(ValueError, match="first"):
        await soon(running)
    assert (stubborn.cancelled, stubborn.ended) == (4, True)


@pytest.mark.parametrize("swallows", [0, 1, 3])
async def test_a_cancellation_from_outside_always_gets_out(swallows: int) -> None:
    children = [Child(swallows=swallows), Child()]
    running = asyncio.ensure_future(together(*(child.live() for child in children)))
    await soon(all_started(*children))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(running)
    assert all(child.ended for child in children)


async def test_a_cancellation_gets_out_of_two_layers_with_a_stubborn_child_inside() -> None:
    stubborn, inner, outer = Child(swallows=1), Child(), Child()

    async def below() -> None:
        await together(stubborn.live(), inner.live())

    running = asyncio.ensure_future(together(below(), outer.live()))
    await soon(all_started(stubborn, inner, outer))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(running)
    assert all(child.ended for child in (stubborn, inner, outer))


async def test_a_cancellation_while_the_children_end_gets_out_too() -> None:
    """The second cancellation meets `together` in its own `finally`."""
    stubborn = Child(swallows=2)
    failing = Child()
    running = asyncio.ensure_future(together(stubborn.live(), failing.live()))
    await soon(all_started(stubborn, failing))
    failing.fails = ValueError("first")
    failing.go.set()
    while not stubborn.cancelled:
        await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(running)
    assert stubborn.ended


async def test_failures_of_the_others_are_seen_and_not_complained_about(caplog) -> None:
    async def fails_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("while it ended")

    failing = Child()
    running = asyncio.ensure_future(together(fails_when_cancelled(), failing.live()))
    await soon(failing.started.wait())
    failing.fails = ValueError("first")
    failing.go.set()
    with pytest.raises(ValueError, match="first"):
        await soon(running)
    assert "never retrieved" not in caplog.text


async def test_tasks_that_have_ended_already_can_be_ended_again() -> None:
    done = asyncio.ensure_future(asyncio.sleep(0))
    await done
    await soon(end([done]))
    await soon(end([]))
    assert not done.cancelled()


async def test_what_must_be_finished_is_finished_though_it_is_cancelled_again_and_again() -> None:
    steps: list[str] = []

    async def work() -> None:
        steps.append("begun")
        await asyncio.sleep(0.05)
        steps.append("done")

    task = asyncio.create_task(finished(work(), within_s=10))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["begun", "done"]


async def test_what_takes_too_long_after_a_cancellation_is_ended() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    task = asyncio.create_task(finished(work(), within_s=0.01))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_a_failure_of_what_must_be_finished_is_passed_on() -> None:
    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await finished(work(), within_s=1)
