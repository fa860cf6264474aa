"""A task on a lattice in a real Redis: committed, loaded, moved elsewhere, and read by people."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import numpy as np
import pytest
import servers
from redis.asyncio import Redis

from aggregator.archive import pack, unpack
from aggregator.fold import Fold
from aggregator.judge import Judge
from aggregator.moving import export_task, import_task
from aggregator.store import Position, TaskStore
from aggregator.tasks import append_entry, create_task, kept_model, last_commit, published_model
from lifetimes.together import end
from redis_session.connection import connect
from schemas.errors import InvariantError
from schemas.evaluation import Evaluation
from schemas.initial import initial_params
from schemas.keys import TaskKeys
from schemas.lattice import KEYFRAME
from schemas.log import DeviceSet, EpochSet, PinSet
from schemas.names import DeviceId, TaskName
from schemas.task import InitOptions, PublishOptions, TaskSpec, checked_spec
from tests.aggregator.world import DEVICE, EPOCH, TENSORS, World, image, make_spec, vector

TASK, OTHER = TaskName("pumps"), TaskName("again")
KEYS = TaskKeys(TASK)
PUBLISH = PublishOptions(lattice=True, step=2.0**-4, chunk_bytes=64, keep=3)
SPEC = checked_spec(make_spec(publish=PUBLISH))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def redis(server: servers.Server) -> AsyncIterator[Redis]:
    async with connect(f"redis://{servers.HOST}:{server.port}/0") as redis:
        await redis.flushall()
        yield redis


class House:
    """A world whose log lies in Redis too, where an aggregator folds it."""

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.world = World(SPEC)
        self.store = TaskStore(redis, KEYS, "token")
        self.written = 1
        self.rng = np.random.Generator(np.random.PCG64(3))

    async def begin(self) -> "House":
        await create_task(self.redis, TASK, SPEC, self.world.params, epoch=EPOCH)
        assert await self.store.hold(60_000)
        return self

    def train(self, times: int = 1) -> None:
        for _ in range(times):
            self.world.send(vector(self.rng) * np.float32(0.3))

    async def commit(self) -> tuple[Fold, Position]:
        """Write what is new into the log, and let an aggregator that starts now fold it."""
        for entry in self.world.log[self.written :]:
            await append_entry(self.redis, TASK, entry.body)
        self.written = len(self.world.log)
        loaded = await self.store.load()
        assert loaded is not None
        state, position = loaded
        fold = Fold(state)
        fold.apply_all(await self.store.read(state.cursor, count=1000, block_ms=1))
        done = await self.store.commit(fold.state, fold.take_changes(), position, log_keep_ms=0)
        assert done is not None
        return fold, done

    async def blobs(self, keys: TaskKeys = KEYS) -> dict[str, bytes]:
        prefix = keys.blob("")
        names = [key.decode().removeprefix(prefix) for key in await self.redis.keys(prefix + "*")]
        return {name: await self.redis.get(keys.blob(name)) for name in names}


async def test_what_is_committed_is_loaded_and_only_what_is_kept_lies_in_redis(
    redis: Redis,
) -> None:
    house = await House(redis).begin()
    for times in (1, 6, 2):
        house.train(times)
        fold, position = await house.commit()
        assert set(await house.blobs()) == set(position.shelf.kept)
    standing = {name.decode() for name in await redis.hkeys(KEYS.blobs)}
    assert standing == {blob.name for blob in position.shelf.living}
    assert standing >= {"d3-0-3", "d3-8-0", "k3-9"}
    loaded = await house.store.load()
    assert loaded is not None
    assert image(loaded[0]) == image(fold.state)
    mine, theirs = image(house.world.state)["lattice"], image(fold.state)["lattice"]
    assert mine == theirs, "where commits fell changes nothing"
    model = await published_model(redis, TASK)
    assert model is not None
    assert model.manifest.codec == KEYFRAME
    assert np.max(np.abs(model.params - house.world.model)) < PUBLISH.step


async def test_a_blob_with_other_parameters_is_no_kept_model(redis: Redis) -> None:
    house = await House(redis).begin()
    house.train()
    await house.commit()
    await kept_model(redis, TASK, 0)
    await redis.set(KEYS.blob("f3-0"), bytes(32))
    with pytest.raises(InvariantError, match="f3-0"):
        await kept_model(redis, TASK, 0)


async def test_pinned_keyframes_follow_their_task_into_another_epoch(redis: Redis) -> None:
    house = await House(redis).begin()
    house.world.append(DeviceSet(DeviceId(DEVICE), tags=("lab",)))
    house.train(2)
    house.world.append(PinSet("lab", 1))
    await house.commit()
    before = await house.blobs()
    house.world.append(EpochSet(EPOCH + 1))
    _, position = await house.commit()
    after = await house.blobs()
    assert after["k4-1"] == before["k3-1"]
    assert set(after) == set(position.shelf.kept)
    assert not [name for name in after if name[0] in "dk" and name[1] == "3"]


async def test_an_export_brings_all_of_it_back_but_the_diffs(redis: Redis) -> None:
    house = await House(redis).begin()
    house.train(5)
    await house.commit()
    house.train()  # stands in the log and is not folded
    for entry in house.world.log[house.written :]:
        await append_entry(redis, TASK, entry.body)
    backup = unpack(pack(await export_task(redis, TASK)))
    assert {name[0] for name in backup.blobs} == {"f", "k", "o"}
    epoch = await import_task(redis, OTHER, backup, unix_s=1.8e9)
    keys = TaskKeys(OTHER)
    store = TaskStore(redis, keys, "token")
    assert await store.hold(60_000)
    loaded = await store.load()
    assert loaded is not None
    state, position = loaded
    fold = Fold(state)
    while entries := await store.read(fold.state.cursor, count=1, block_ms=1):
        fold.apply_all(entries)
        done = await store.commit(fold.state, fold.take_changes(), position, log_keep_ms=0)
        assert done is not None
        position = done
        assert set(position.shelf.kept) == set(await house.blobs(keys))
    assert fold.state.epoch == epoch
    assert fold.state.model.vectors["params"].tobytes() == house.world.model.tobytes()
    manifest = fold.state.published.named  # type: ignore[union-attr] # there is one
    assert (manifest.serial, manifest.oldest) == (7, 7)
    assert (await kept_model(redis, OTHER, 4)).params.size == TENSORS.size


async def test_the_judge_measures_what_devices_have(redis: Redis) -> None:
    house = await House(redis).begin()
    house.train()
    fold, _ = await house.commit()
    seen: list[bytes] = []

    def evaluate(tensors: object) -> Evaluation:
        assert isinstance(tensors, dict)
        seen.append(b"".join(tensors[tensor.name].tobytes() for tensor in TENSORS.tensors))
        return Evaluation(1, {"height": 1.0})

    judge = Judge(TASK, house.store, evaluate)
    judge.look(fold.state)
    running = asyncio.create_task(judge.run())
    async with asyncio.timeout(5):
        while not seen:
            await asyncio.sleep(0.005)
    await end([running])
    assert seen == [(await house.blobs())["f3-1"]]


async def test_a_task_tells_how_its_model_is_drawn_only_when_it_is(redis: Redis) -> None:
    init = InitOptions("glorot", 9)
    spec = msgspec.structs.replace(SPEC, init=init)
    drawn = initial_params(TENSORS, init, np.random.Generator(np.random.PCG64(9)))
    other = drawn.copy()
    other[0] += 1
    for name, params, told in ((TASK, drawn, init), (OTHER, other, None)):
        await create_task(redis, name, spec, params, epoch=EPOCH)
        store = TaskStore(redis, TaskKeys(name), "token")
        assert await store.hold(60_000)
        loaded = await store.load()
        assert loaded is not None
        fold = Fold(loaded[0])
        fold.apply_all(await store.read(fold.state.cursor, count=9, block_ms=1))
        assert await store.commit(fold.state, fold.take_changes(), loaded[1], log_keep_ms=0)
        found: TaskSpec | None = (await last_commit(redis, name)).spec
        assert found is not None
        assert found.init == told
        assert fold.state.lattice is not None
        assert fold.state.lattice.drawn == (told is not None)
