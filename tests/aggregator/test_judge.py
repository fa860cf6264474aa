"""The server's own judge, on a real Redis: every version that the gate must compare is measured."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import msgspec
import numpy as np
import pytest
import servers
from redis.asyncio import Redis

from aggregator.judge import Guiding
from aggregator.service import serve
from aggregator.settings import AggregatorSettings
from aggregator.tasks import append_entry, create_task, last_commit
from redis_session.connection import connect
from schemas.codecs import Ask, CodecOptions, codec_by_name
from schemas.evaluation import Evaluation
from schemas.log import Arrived, Guided, Tick, from_fields
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName, shard_of
from schemas.params import Params, ParamSpec, TensorSpec, base_digest, model_digest
from schemas.strategy import RobustOptions, StalenessOptions, StrategyOptions
from schemas.task import GateOptions, TaskSpec, checked_spec
from schemas.wire import encode_update

TASK, DEVICE = TaskName("judged"), DeviceId("d")
TENSORS = ParamSpec((TensorSpec("w", (2,)),))
SPEC = checked_spec(
    TaskSpec(
        TENSORS,
        StrategyOptions(buffer_size=1, staleness=StalenessOptions("constant")),
        codec=CodecOptions("float32"),
        gate=GateOptions("height", by="server", patience_s=3600.0),
    )
)


@pytest.fixture
async def redis(tmp_path) -> AsyncIterator[Redis]:
    with servers.redis_server(tmp_path) as server:
        async with connect(f"redis://{servers.HOST}:{server.port}/0") as redis:
            yield redis


async def send(redis: Redis, seq: int) -> None:
    """An update from version 0 that adds one."""
    start = np.zeros(2, np.float32)
    codec = codec_by_name("float32")
    update = ModelUpdate(
        epoch=Epoch(1),
        boot=Boot(1),
        seq=Seq(seq),
        base_version=ModelVersion(0),
        base_digest=base_digest(model_digest(TENSORS.digest, start)),
        spec_digest=TENSORS.short_digest,
        codec=codec.codec_id,
        num_examples=1,
        payload=codec.encode(start + 1, Ask(SPEC.codec), None),  # type: ignore[arg-type]
    )
    data = encode_update(update)
    await append_entry(redis, TASK, Arrived(DEVICE, shard_of(DEVICE), data, len(data)))


class Height:
    """Finds the mean of w; fails at the versions that it is told to fail at."""

    def __init__(self, *fails_at: float) -> None:
        self.asked: list[float] = []
        self._fails_at = fails_at

    def __call__(self, tensors: Mapping[str, Params]) -> Evaluation:
        height = float(tensors["w"].mean())
        self.asked.append(height)
        if height in self._fails_at:
            raise RuntimeError("no such file")
        return Evaluation(10, {"height": height})


async def judged(
    redis: Redis, judge: Height, status: Mapping[int, str], *, asked: float | None = None
) -> None:
    """Serve until the releases stand as they should, and the judge was asked about a height."""
    port = redis.connection_pool.connection_kwargs["port"]
    settings = AggregatorSettings(redis_url=f"redis://{servers.HOST}:{port}/0")
    serving = asyncio.create_task(serve(settings, evaluators={TASK: judge}))
    found: dict[int, str] = {}
    try:
        async with asyncio.timeout(20):
            while found != status or (asked is not None and asked not in judge.asked):
                await asyncio.sleep(0.02)
                if await redis.exists(f"fedmq:{{{TASK}}}:checkpoint"):
                    releases = (await last_commit(redis, TASK)).releases
                    found = {each.version: str(each.status) for each in releases}
    except TimeoutError:
        pytest.fail(f"{found} is not {status}; asked {judge.asked}")
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_version_and_the_one_before_it_are_measured_though_both_came_at_once(redis) -> None:
    await create_task(redis, TASK, SPEC, np.zeros(2, np.float32), epoch=1)
    await send(redis, 1)  # versions 0 and 1 are made in the first batch
    judge = Height()
    await judged(redis, judge, {0: "published", 1: "published"})
    assert judge.asked == [0.0, 1.0]


async def test_each_version_is_measured_once_though_the_log_goes_on(redis) -> None:
    await create_task(redis, TASK, SPEC, np.zeros(2, np.float32), epoch=1)
    judge = Height()
    await judged(redis, judge, {0: "published"})
    for _ in range(3):
        await append_entry(redis, TASK, Tick())
    await send(redis, 1)
    await judged(redis, judge, {0: "published", 1: "published"})
    assert sorted(set(judge.asked)) == [0.0, 1.0]
    assert judge.asked.count(1.0) == 1


async def test_a_judge_that_fails_at_one_version_goes_on_with_the_next(redis) -> None:
    spec = msgspec.structs.replace(SPEC, gate=GateOptions())
    await create_task(redis, TASK, spec, np.zeros(2, np.float32), epoch=1)
    await send(redis, 1)
    judge = Height(1.0)
    await judged(redis, judge, {0: "published", 1: "published"}, asked=1.0)
    await send(redis, 2)
    await judged(redis, judge, dict.fromkeys(range(3), "published"), asked=2.0)


async def test_where_a_guard_asks_for_it_the_server_trains_from_what_it_has_published(
    redis,
) -> None:
    strategy = msgspec.structs.replace(SPEC.strategy, robust=RobustOptions(guard="zeno++"))
    spec = msgspec.structs.replace(SPEC, strategy=strategy)
    await create_task(redis, TASK, spec, np.zeros(2, np.float32), epoch=1)
    port = redis.connection_pool.connection_kwargs["port"]
    settings = AggregatorSettings(redis_url=f"redis://{servers.HOST}:{port}/0")
    serving = asyncio.create_task(serve(settings, evaluators={TASK: Guiding(Height(), up_by_two)}))
    guides: list[object] = []
    try:
        async with asyncio.timeout(20):
            while not guides:
                await asyncio.sleep(0.02)
                entries = await redis.xrange(f"fedmq:{{{TASK}}}:log")
                guides = [from_fields(each) for _, each in entries if each[b"k"] == b"guide"]
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    assert guides == [Guided(0, np.full(2, 2, "<f4").tobytes())]


def up_by_two(tensors: dict[str, Params]) -> Mapping[str, Params]:
    """Trains in place, as users do."""
    tensors["w"] += 2
    return tensors
