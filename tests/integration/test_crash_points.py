"""Crash before and after every command that the aggregator gives Redis; then the planted bugs.

The harness must find what it is there to find: each planted bug has a test that says so.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from redis.asyncio import Redis

from aggregator.checkpoint import changed_windows, small_state
from aggregator.fold import Changes, Fold, TaskState, origin_state
from aggregator.store import Position, TaskStore
from aggregator.tasks import create_task, published_model
from redis_session.connection import connect
from schemas.keys import TaskKeys
from schemas.log import Arrived, Entry, EntryId, from_fields, to_fields
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName, shard_of
from schemas.outcomes import FOLDED
from schemas.params import ParamSpec, TensorSpec, base_digest, model_digest, unflatten
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import CodecOptions, LimitOptions, TaskSpec
from schemas.window import SeqWindow
from schemas.wire import encode_update

TASK = TaskName("crashes")
KEYS = TaskKeys(TASK)
SIZE = 8
SPEC = TaskSpec(
    params=ParamSpec((TensorSpec("w", (SIZE,)),)),
    strategy=StrategyOptions(
        buffer_size=2,
        server_lr=2.0,
        flush_after_s=0.0,
        max_staleness=100,
        staleness=StalenessOptions("constant"),
    ),
    codec=CodecOptions("float32"),
    limits=LimitOptions(),
)
ARRIVALS = [2, 1, 4, 3, 6, 5, 8, 7]  # first arrivals come below the highest number
WRITES = {"EVAL", "EVALSHA", "HSET", "SET", "DEL", "XADD"}


class PowerCutError(Exception):
    """The process is gone."""


class MortalRedis(Redis):
    """Dies at its n-th writing command: before it is sent, or after it was carried out."""

    lives: float = float("inf")
    dies_after = False

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        if str(args[0]).upper() not in WRITES:
            return await super().execute_command(*args, **options)
        self.lives -= 1
        if self.lives < 0 and not self.dies_after:
            raise PowerCutError
        answer = await super().execute_command(*args, **options)
        if self.lives < 0:
            raise PowerCutError
        return answer


def update(seq: int) -> bytes:
    """Adds 1 to coordinate seq - 1; trained from version 0 of the zero model."""
    zeros = origin_state(Epoch(1), unit(0)).model.vectors["params"]
    return encode_update(
        ModelUpdate(
            epoch=Epoch(1),
            boot=Boot(7),
            seq=Seq(seq),
            base_version=ModelVersion(0),
            base_digest=base_digest(model_digest(SPEC.params.digest, zeros)),
            spec_digest=SPEC.params.short_digest,
            codec=0,
            num_examples=1,
            payload=unit(seq).tobytes(),
        )
    )


def unit(seq: int) -> Any:
    import numpy as np

    vector = np.zeros(SIZE, dtype=np.float32)
    if seq:
        vector[seq - 1] = 1
    return vector


async def send(redis: Redis, seqs: list[int]) -> None:
    device = DeviceId("d")
    for seq in seqs:
        data = update(seq)
        fields: Any = to_fields(Arrived(device, shard_of(device), data, len(data)))
        await redis.xadd(KEYS.log, fields)


async def fold_until_drained(redis: Redis, store_type: type[TaskStore]) -> None:
    """What the service does, in small batches, until the log is at its end."""
    store = store_type(redis, KEYS, "token")
    assert await store.hold(60_000)
    loaded = await store.load()
    assert loaded is not None
    state, position = loaded
    fold = Fold(state)
    while entries := await store.read(fold.state.cursor, count=3, block_ms=1):
        fold.apply_all(entries)
        committed = await store.commit(fold.state, fold.take_changes(), position, log_keep_ms=0)
        assert committed is not None
        position = committed


async def survive(
    server: servers.Server, lives: int, *, dies_after: bool, store_type: type[TaskStore]
) -> bool:
    """One story: updates come, the process dies once, comes back, and devices send again.

    Returns whether it died at all; fails unless every update was folded exactly once.
    """
    url = f"redis://127.0.0.1:{server.port}/0"
    async with connect(url) as plain:
        await plain.flushall()
        await create_task(plain, TASK, SPEC, unit(0), epoch=1)
        await send(plain, ARRIVALS)
        async with MortalRedis.from_url(url) as mortal:
            mortal.lives, mortal.dies_after = lives, dies_after
            died = False
            try:
                await fold_until_drained(mortal, store_type)
            except PowerCutError:
                died = True
        await send(plain, ARRIVALS)  # no Receipt was heard: everything comes again
        await fold_until_drained(plain, store_type)
        await check_exactly_once(plain)
    return died


async def check_exactly_once(redis: Redis) -> None:
    model = await published_model(redis, TASK)
    assert model is not None
    counts = unflatten(SPEC.params, model.params)["w"].tolist()
    assert counts == [1.0] * SIZE, f"folded so many times: {counts}"
    fields: Any = await redis.xrange(KEYS.log)
    log = [Entry(EntryId.parse(entry_id), from_fields(each)) for entry_id, each in fields]
    replayed = Fold(origin_state(Epoch(1), unit(0)))
    replayed.apply_all(log)
    assert replayed.state.tally.folded == SIZE
    digest = model_digest(SPEC.params.digest, replayed.state.model.vectors["params"])
    assert digest == model.manifest.model_digest, "the model is not the fold of the log"


async def stories(server: servers.Server, store_type: type[TaskStore] = TaskStore) -> None:
    """Die before and after every writing command, until none is left to die at."""
    for dies_after in (False, True):
        lives = 0
        while await survive(server, lives, dies_after=dies_after, store_type=store_type):
            lives += 1
        assert lives >= 4, "the story has fewer commands than it should: the harness is blind"


@pytest.fixture(params=["redis", "valkey"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[servers.Server]:
    start = servers.redis_server if request.param == "redis" else servers.valkey
    with start(tmp_path, appendfsync="no") as running:
        yield running


async def test_every_update_is_folded_once_wherever_the_aggregator_dies(
    server: servers.Server,
) -> None:
    await stories(server)


class CursorBeforeCommit(TaskStore):
    """Planted bug: the cursor is written, and then what it stands for."""

    async def commit(
        self, state: TaskState, changes: Changes, position: Position, *, log_keep_ms: int
    ) -> Position | None:
        ahead = {
            "serial": position.serial,
            "small": small_state(state, position.shelf.living, position.shelf.kept),
        }
        await self._redis.hset(KEYS.checkpoint, mapping=ahead)
        return await super().commit(state, changes, position, log_keep_ms=log_keep_ms)


class MarksOutsideCommit(TaskStore):
    """Planted bug: what was seen is written after the model that contains it."""

    async def commit(
        self, state: TaskState, changes: Changes, position: Position, *, log_keep_ms: int
    ) -> Position | None:
        marks = changed_windows(state, changes.senders)
        changes.senders.clear()
        done = await super().commit(state, changes, position, log_keep_ms=log_keep_ms)
        if marks:
            await self._redis.hset(KEYS.windows, mapping=marks)
        return done


@pytest.mark.parametrize("bug", [CursorBeforeCommit, MarksOutsideCommit])
async def test_the_harness_finds_a_planted_bug(
    server: servers.Server, bug: type[TaskStore]
) -> None:
    with pytest.raises((AssertionError, KeyError)):
        await stories(server, bug)


async def test_the_harness_finds_dedup_by_highest_number(
    server: servers.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_highest(self: SeqWindow, seq: Seq) -> int:
        return FOLDED if seq <= self.top else 0

    monkeypatch.setattr(SeqWindow, "outcome", by_highest)
    with pytest.raises(AssertionError, match="folded so many times"):
        await stories(server)


async def begun(redis: Redis, token: str) -> tuple[TaskStore, Fold, Position]:
    """A new task, held under `token` and folded, but not committed."""
    await redis.flushall()
    await create_task(redis, TASK, SPEC, unit(0), epoch=1)
    store = TaskStore(redis, KEYS, token)
    await store.hold(60_000)
    loaded = await store.load()
    assert loaded is not None
    fold = Fold(loaded[0])
    fold.apply_all(await store.read(fold.state.cursor, count=9, block_ms=1))
    return store, fold, loaded[1]


async def test_a_commit_that_is_repeated_is_refused(server: servers.Server) -> None:
    async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
        store, fold, position = await begun(redis, "token")
        changes = fold.take_changes()
        assert await store.commit(fold.state, changes, position, log_keep_ms=0) is not None
        assert await store.commit(fold.state, changes, position, log_keep_ms=0) is None


async def test_who_lost_the_lease_cannot_commit(server: servers.Server) -> None:
    async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
        late, fold, position = await begun(redis, "late")
        await redis.delete(KEYS.holder)  # as if its time had run out
        assert await TaskStore(redis, KEYS, "next").hold(60_000)
        assert await late.commit(fold.state, fold.take_changes(), position, log_keep_ms=0) is None


async def test_a_restarted_redis_refuses_the_memory_of_the_one_before(
    server: servers.Server,
) -> None:
    async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
        _, fold, position = await begun(redis, "token")
    server.stop()
    server.start()
    async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
        store = TaskStore(redis, KEYS, "token")
        await store.hold(60_000)
        assert await store.commit(fold.state, fold.take_changes(), position, log_keep_ms=0) is None


def test_unit_vectors_are_what_the_story_needs() -> None:
    assert struct.unpack("<8f", unit(3).tobytes()) == (0, 0, 1, 0, 0, 0, 0, 0)


async def test_who_began_with_a_deleted_task_cannot_commit_into_its_namesake(
    server: servers.Server,
) -> None:
    async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
        store, fold, position = await begun(redis, "token")
        await redis.flushall()
        await create_task(redis, TASK, SPEC, unit(0), epoch=2)
        await store.hold(60_000)
        committed = await store.commit(fold.state, fold.take_changes(), position, log_keep_ms=0)
        assert committed is None


async def test_the_epoch_rises_by_as_many_failovers_as_there_were_and_for_no_lower_count(
    server: servers.Server,
) -> None:
    async with connect(f"redis://127.0.0.1:{server.port}/0") as redis:
        store, fold, _ = await begun(redis, "token")

        async def raised(count: int) -> bytes | None:
            if not await store.note_failovers(count, fold.state, raise_epoch=True):
                return None
            newest: Any = await redis.xrevrange(KEYS.log, count=1)
            return bytes(newest[0][1][b"p"])

        assert await raised(5) is None, "the first count is only noted"
        assert await raised(6) == b'{"epoch":2}'
        assert await raised(5) is None, "a Sentinel that lags changes nothing"
        assert await raised(6) is None
        assert await raised(8) == b'{"epoch":3}'
        assert from_fields({b"k": b"epoch", b"p": b'{"epoch":3}'}) is not None
