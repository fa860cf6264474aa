"""What a question costs is bounded, and its answer leads where the single diffs lead."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator

from broker import asking
from broker.asking import BURST, EVERY_S, Recent, Turns, names, one_diff
from broker.clerk import WAITING, Clerk
from broker.routing import Asked
from lifetimes.together import end
from schemas.asking import Question, decode_reply, encode_ask
from schemas.errors import WireError
from schemas.lattice import SPAN, applied, decode_diff, diff_of, encode_diff
from schemas.names import DeviceId, Epoch, TaskName, shard_of
from schemas.params import ParamSpec, TensorSpec
from schemas.task import PublishOptions, TaskSpec, checked_spec, spec_to_json
from schemas.topics import SHARDS

TASK, DEVICE = TaskName("pumps"), DeviceId("pump-1")
SIZES = (30, 12)
SPEC = checked_spec(
    TaskSpec(
        ParamSpec((TensorSpec("a", (30,)), TensorSpec("b", (12,)))),
        publish=PublishOptions(lattice=True),
    )
)
EXPONENTS = (5, 5)


def points(count: int) -> list[np.ndarray]:
    rng = generator(3)
    steps = rng.integers(-2, 3, (count, sum(SIZES))) * (rng.random((count, sum(SIZES))) < 0.1)
    return list(np.cumsum(steps, axis=0).astype(np.int32))


POINTS = points(80)


def diff(first: int, last: int) -> bytes:
    return encode_diff(diff_of(POINTS[first], EXPONENTS, POINTS[last], EXPONENTS, SIZES), SIZES)


def blob(name: str) -> bytes:
    _, first, level = name.split("-")
    return diff(int(first), int(first) + (1 << int(level)))


# -- the pure part -----------------------------------------------------------------------------


@LEAN
@given(first=st.integers(0, 14), gap=st.integers(1, SPAN))
def test_one_diff_leads_where_those_of_the_path_lead(first, gap):
    ask = Question(Epoch(1), first, first + gap)
    merged = one_diff([blob(name) for name in names(ask)], SIZES)
    q, exponents = applied(POINTS[first], EXPONENTS, decode_diff(merged, SIZES), SIZES)
    assert (q.tolist(), exponents) == (POINTS[first + gap].tolist(), EXPONENTS)
    assert merged == diff(first, first + gap)


def test_a_gap_that_no_diffs_span_is_refused_before_anything_is_read():
    with pytest.raises(WireError):
        names(Question(Epoch(1), 0, SPAN + 1))
    with pytest.raises(WireError):
        names(Question(Epoch(1), 0, 2**32 - 1))


def test_a_blob_that_is_no_diff_is_refused():
    with pytest.raises(WireError):
        one_diff([diff(0, 1), b"\xff\xff"], SIZES)


def test_a_device_that_asks_too_often_waits_and_others_do_not():
    turns = Turns()
    assert [turns.take(TASK, DEVICE, 10.0) for _ in range(6)] == [True] * int(BURST) + [False] * 2
    assert turns.take(TASK, DeviceId("pump-2"), 10.0)
    assert not turns.take(TASK, DEVICE, 10.0 + 0.9 * EVERY_S)
    assert turns.take(TASK, DEVICE, 10.1 + EVERY_S)
    assert not turns.take(TASK, DEVICE, 10.1 + EVERY_S)
    assert [turns.take(TASK, DEVICE, 1e6) for _ in range(5)] == [True] * int(BURST) + [False]


def test_only_so_many_devices_are_counted(monkeypatch):
    monkeypatch.setattr(asking, "DEVICES_KEPT", 10)
    turns = Turns()
    for number in range(100):
        turns.take(TASK, DeviceId(f"d{number}"), float(number))
    assert len(turns._left) == 10


@LEAN
@given(kept=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=30))
def test_what_is_kept_of_merged_diffs_is_bounded_and_the_newest_stays(kept):
    recent = Recent(most=100)
    for number, size in kept:
        wish = TASK, Question(Epoch(1), number, 9)
        recent.keep(wish, bytes(size))
        assert recent.find(wish) == bytes(size)
        assert recent._bytes == sum(map(len, recent._kept.values())) <= 100


# -- the clerk ---------------------------------------------------------------------------------


class Redis:
    """What the clerk asks of Redis."""

    def __init__(self) -> None:
        self.reads = 0
        self.raw: bytes | None = spec_to_json(SPEC)
        self.gone: set[str] = set()

    async def spec(self, task: TaskName) -> bytes | None:
        return self.raw if task == TASK else None

    async def blobs(self, _task: TaskName, wanted: list[str], *, most: int) -> list[bytes] | None:
        self.reads += 1
        if self.gone & set(wanted):
            return None
        return [blob(name) for name in wanted]


class Session:
    def __init__(self) -> None:
        self.said: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    async def publish(self, topic: str, payload: bytes, **_options: Any) -> None:
        self.said.put_nowait((topic, payload))


@asynccontextmanager
async def clerk(shards: str = "".join(sorted(SHARDS))) -> AsyncIterator[tuple[Clerk, Any, Any]]:
    made, redis, session = Clerk("fedmq/v1", shards), Redis(), Session()
    serving: Any = made.serve
    running = asyncio.create_task(serving(session, redis))
    yield made, redis, session
    await end([running])


def question(first: int, last: int, device: str = DEVICE, task: TaskName = TASK) -> Asked:
    return Asked(task, DeviceId(device), encode_ask(Question(Epoch(1), first, last)))


async def test_a_question_is_answered_to_its_device_and_merged_once_for_many() -> None:
    async with clerk() as (there, redis, session):
        for device in ("pump-1", "pump-2", "pump-3"):
            there.hear(question(3, 27, device))
            topic, payload = await session.said.get()
            assert topic == f"fedmq/v1/pumps/reply/{device}"
            reply = decode_reply(payload)
            assert (reply.asked, reply.diff) == (Question(Epoch(1), 3, 27), diff(3, 27))
    assert redis.reads == 1
    assert (there.answered, there.refused) == (3, 0)


async def test_what_is_garbage_or_not_there_is_passed_over_in_silence(caplog) -> None:
    caplog.set_level(logging.DEBUG, "fedmq.bridge")
    async with clerk() as (there, redis, session):
        redis.gone = {"d1-4-2"}
        for asked in (
            Asked(TASK, DeviceId("a"), b"\xff"),
            Asked(TASK, DeviceId("b"), b""),
            question(0, 70, "c"),
            question(3, 27, "d"),
            question(3, 27, "e", TaskName("unknown")),
        ):
            there.hear(asked)
        there.hear(question(8, 27, "f"))
        topic, _ = await session.said.get()
        assert topic.endswith("/f")
        redis.raw = b"not JSON"
        there.hear(question(9, 27, "g"))
        while there.refused < 6:
            await asyncio.sleep(0.01)
    assert caplog.text.count("ask_refused task=") == 6
    assert there.answered == 1


async def test_a_model_that_is_too_large_and_a_diff_that_is_too_long_are_refused(
    monkeypatch,
) -> None:
    async with clerk() as (there, _, session):
        monkeypatch.setattr("broker.clerk.REPLY_BYTES_MOST", len(diff(3, 27)) - 1)
        there.hear(question(3, 27, "a"))
        while there.refused < 1:
            await asyncio.sleep(0.01)
        monkeypatch.setattr("broker.clerk.REPLY_BYTES_MOST", len(diff(3, 27)))
        there.hear(question(3, 27, "b"))
        await session.said.get()
    async with clerk() as (there, _, session):
        monkeypatch.setattr("broker.clerk.PARAMS_MOST", 41)
        there.hear(question(3, 27))
        while there.refused < 1:
            await asyncio.sleep(0.01)


async def test_a_bridge_answers_the_devices_of_its_own_shards() -> None:
    other = next(s for s in SHARDS if s != shard_of(DEVICE))
    async with clerk(shard_of(DEVICE)) as (mine, _, session):
        there = Clerk("fedmq/v1", other)
        there.hear(question(3, 27))
        mine.hear(question(3, 27))
        await session.said.get()
    assert there._line.empty()
    assert there.refused == 0


def test_the_line_is_short_and_hearing_never_waits(caplog) -> None:
    caplog.set_level(logging.DEBUG, "fedmq.bridge")
    there = Clerk("fedmq/v1", SHARDS)
    for number in range(WAITING + 5):
        there.hear(question(3, 27, f"d{number}"))
    assert there.refused == 5
    assert caplog.text.count("too many ask") == 5
    for _ in range(9):
        there.hear(question(3, 27, "d0"))
    assert caplog.text.count("it asks too often") >= 5
