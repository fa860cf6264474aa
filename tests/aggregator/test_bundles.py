"""A task's bundle from its birth to its end, in a real Redis."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import bundling
import msgspec
import pytest
import servers
from redis.asyncio import Redis

from aggregator.announce import Shelf, moves, records
from aggregator.archive import pack, unpack
from aggregator.bundles import bundle_bytes, reference_for, task_bundle
from aggregator.fold import Fold
from aggregator.moving import export_task, import_task
from aggregator.shelf import in_redis, on_broker
from aggregator.store import TaskStore
from aggregator.tasks import (
    all_tasks,
    append_entry,
    create_task,
    delete_task,
    last_commit,
    task_spec,
)
from redis_session.connection import connect
from schemas.bundle import BundleRef, ref_of
from schemas.errors import ConfigError, InvariantError
from schemas.keys import LEAVING, TaskKeys
from schemas.log import SpecSet
from schemas.names import TaskName
from schemas.outbox import Say, Spread, Sweep, from_fields
from schemas.params import ParamSpec, TensorSpec
from schemas.task import PublishOptions, TaskSpec, checked_spec, spec_to_json
from tests.aggregator.world import EPOCH, TENSORS, World, make_spec, ramp

TASK, OTHER = TaskName("pumps"), TaskName("again")
KEYS = TaskKeys(TASK)
PACKED = bundling.packed(TENSORS)
PLAIN = make_spec(publish=PublishOptions(chunk_bytes=64, keep=2))
REF = ref_of(PACKED, 64)
SPEC = checked_spec(msgspec.structs.replace(PLAIN, bundle=REF))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def redis(server: servers.Server) -> AsyncIterator[Redis]:
    async with connect(f"redis://{servers.HOST}:{server.port}/0") as redis:
        await redis.flushall()
        yield redis


# -- what is told of it ------------------------------------------------------------------------


def test_it_is_spread_before_the_specification_that_names_it_and_only_once():
    world, shelf = World(SPEC), Shelf()
    told = []
    for _ in range(5):
        changes = world.changes()
        moved = moves(world.state, shelf)
        told.append(list(records(world.state, changes, moved)))
        shelf = moved.after
        world.send()
    assert told[0][0] == Spread(REF.blob, 64)
    assert isinstance(told[0][1], Say)
    assert told[0][1].suffix == "spec"
    everything = [each for batch in told for each in batch]
    assert everything.count(Spread(REF.blob, 64)) == 1
    swept = [each.blob for each in everything if isinstance(each, Sweep)]
    assert swept, "models were swept meanwhile"
    assert REF.blob not in swept


def test_it_stays_on_the_broker_and_in_redis_however_many_models_come():
    world = World(SPEC)
    for _ in range(12):
        world.send()
        assert (REF.blob, len(PACKED), 64) in [
            (blob.name, blob.size, blob.chunk_bytes) for blob in on_broker(world.state)
        ]
        assert REF.blob in in_redis(world.state)
    assert REF.blob not in in_redis(World(PLAIN).state)


def test_a_log_that_changes_the_bundle_is_not_folded():
    for other in (None, BundleRef("0" * 64, 7, 64)):
        world = World(SPEC)
        changed = checked_spec(msgspec.structs.replace(SPEC, bundle=other))
        with pytest.raises(InvariantError, match="its bundle"):
            world.append(SpecSet(spec_to_json(changed)))


# -- what is stored ----------------------------------------------------------------------------


async def create(redis: Redis, spec: TaskSpec = PLAIN, bundle: bytes | None = PACKED) -> None:
    await create_task(redis, TASK, spec, ramp(), epoch=EPOCH, bundle=bundle)


async def commit(redis: Redis, keys: TaskKeys = KEYS) -> None:
    """What an aggregator does once."""
    store = TaskStore(redis, keys, "token")
    assert await store.hold(60_000)
    loaded = await store.load()
    assert loaded is not None
    state, position = loaded
    fold = Fold(state)
    fold.apply_all(await store.read(state.cursor, count=1000, block_ms=1))
    assert await store.commit(fold.state, fold.take_changes(), position, log_keep_ms=0)


async def test_a_new_task_has_its_bundle_and_names_it(redis: Redis) -> None:
    await create(redis)
    spec = await task_spec(redis, TASK)
    assert spec == SPEC
    assert spec.needs == ("bundle",)
    assert await bundle_bytes(redis, TASK, REF) == PACKED
    found = await task_bundle(redis, TASK, spec)
    assert found is not None
    assert (found.step, found.digest) == (bundling.STEP, REF.digest)
    assert await task_bundle(redis, TASK, PLAIN) is None


async def test_a_task_that_cannot_be_created_leaves_no_bundle(redis: Redis) -> None:
    await create(redis)
    other = bundling.packed(TENSORS, bundling.graph("step", operator="Tanh"))
    with pytest.raises(ConfigError, match="exists already"):
        await create(redis, bundle=other)
    assert [key async for key in redis.scan_iter(match="*blob:*")] == [KEYS.blob(REF.blob).encode()]


async def test_commits_keep_it_and_its_chunks_are_registered(redis: Redis) -> None:
    await create(redis)
    for rate in (0.1, 0.2, 0.3):
        await commit(redis)
        changed = msgspec.structs.replace(
            SPEC, train=msgspec.structs.replace(SPEC.train, learning_rate=rate)
        )
        await append_entry(redis, TASK, SpecSet(spec_to_json(changed)))
    await commit(redis)
    assert await bundle_bytes(redis, TASK, REF) == PACKED
    assert await redis.hget(KEYS.blobs, REF.blob) == b"64"
    assert REF.blob in (await last_commit(redis, TASK)).kept


async def test_an_exported_task_brings_its_bundle_along(redis: Redis) -> None:
    await create(redis)
    await commit(redis)
    backup = unpack(pack(await export_task(redis, TASK)))
    await redis.flushall()
    await import_task(redis, OTHER, backup, unix_s=1.8e9)
    assert await bundle_bytes(redis, OTHER, REF) == PACKED
    await commit(redis, TaskKeys(OTHER))
    said = [from_fields(fields) for _, fields in await redis.xrange(TaskKeys(OTHER).outbox)]
    assert Spread(REF.blob, 64) in said, "its chunks are retained anew"
    assert await bundle_bytes(redis, OTHER, REF) == PACKED


async def test_a_task_whose_bundle_is_gone_is_not_exported(redis: Redis) -> None:
    await create(redis)
    await commit(redis)
    for value in (PACKED[:-1], None):
        if value is None:
            await redis.delete(KEYS.blob(REF.blob))
        else:
            await redis.set(KEYS.blob(REF.blob), value)
        with pytest.raises(ConfigError, match=r"bundle: .* not in Redis as it was stored: import"):
            await export_task(redis, TASK)


async def test_a_task_whose_version_is_gone_is_not_exported(redis: Redis) -> None:
    """Not one that is swept meanwhile: it is read again, but not for ever."""
    await create(redis)
    await commit(redis)
    (version,) = [name for name in (await last_commit(redis, TASK)).kept if name != REF.blob]
    await redis.delete(KEYS.blob(version))
    with pytest.raises(ConfigError, match=f"task: 'pumps' lacks {version} in Redis"):
        await export_task(redis, TASK)


async def test_a_version_that_is_swept_while_it_is_read_is_read_again(redis: Redis) -> None:
    await create(redis)
    await commit(redis)
    (version,) = [name for name in (await last_commit(redis, TASK)).kept if name != REF.blob]
    whole = await redis.get(KEYS.blob(version))
    await redis.delete(KEYS.blob(version))
    asked = []

    class Late(Redis):
        """Has the version when it is asked for it a second time."""

        async def get(self, name):
            asked.append(name)
            found = await redis.get(name)
            return whole if name == KEYS.blob(version) and asked.count(name) > 1 else found

    async with Late(connection_pool=redis.connection_pool) as late:
        assert (await export_task(late, TASK)).blobs[version] == whole
    assert asked.count(KEYS.blob(version)) == 2


async def test_a_file_without_what_its_task_needs_is_not_imported(redis: Redis) -> None:
    await create(redis)
    await commit(redis)
    backup = await export_task(redis, TASK)
    for name in backup.blobs:
        rest = {each: blob for each, blob in backup.blobs.items() if each != name}
        with pytest.raises(ConfigError, match=f"file: lacks {name}, which its task needs"):
            await import_task(redis, OTHER, replace(backup, blobs=rest), unix_s=1.8e9)
    other = dict(backup.blobs) | {REF.blob: PACKED[:-1]}
    with pytest.raises(ConfigError, match=r"file: holds a bundle .* not the one its task names"):
        await import_task(redis, OTHER, replace(backup, blobs=other), unix_s=1.8e9)
    assert await all_tasks(redis) == [TASK]


async def test_a_deleted_task_leaves_nothing_of_it(redis: Redis) -> None:
    await create(redis)
    await commit(redis)
    await delete_task(redis, TASK)
    assert not await redis.exists(KEYS.blob(REF.blob))
    said = [from_fields(fields) for _, fields in await redis.xrange(KEYS.outbox)]
    assert Sweep(REF.blob, -(-len(PACKED) // 64)) in said
    await redis.srem(LEAVING, TASK)


async def test_a_bundle_that_was_altered_in_redis_is_an_error_of_ours(redis: Redis) -> None:
    await create(redis)
    for value in (PACKED[:-1], None):
        if value is None:
            await redis.delete(KEYS.blob(REF.blob))
        else:
            await redis.set(KEYS.blob(REF.blob), value)
        with pytest.raises(InvariantError, match="not in Redis as it was stored"):
            await bundle_bytes(redis, TASK, REF)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "bundle", "why"),
    [
        (SPEC, None, "bundle: is named by the specification, and its bytes are missing"),
        (PLAIN, b"none", "bundle: these bytes are no bundle"),
        (PLAIN, bundling.packed(TENSORS, bundling.graph("s", ir=11)), "bundle: .*IR version 11"),
        (PLAIN, bundling.packed(ParamSpec((TensorSpec("v", (8,)),))), "params: are not the bundle"),
        (
            msgspec.structs.replace(PLAIN, bundle=BundleRef("0" * 64, 7)),
            PACKED,
            "bundle: is another one",
        ),
    ],
)
async def test_what_does_not_fit_the_task_is_refused(spec, bundle, why) -> None:
    with pytest.raises(ConfigError, match=why):
        await reference_for(spec, bundle)


async def test_the_chunks_of_a_task_without_a_reference_are_those_of_its_models() -> None:
    assert await reference_for(PLAIN, PACKED) == REF
    named = msgspec.structs.replace(PLAIN, bundle=ref_of(PACKED, 128))
    assert await reference_for(named, PACKED) == ref_of(PACKED, 128)
