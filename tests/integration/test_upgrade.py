"""A newer fedmq takes over from an older one, on recorded stores and under way: nothing is lost.

tests/vectors/compatibility/redis_schema_1.json holds three tasks as fedmq before schema 2 left them
in Redis, half of each log folded, and what that version made of the whole log.
"""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import servers
from integration.stack import TASK, Process, Stack, eventually, fedmq, stack
from integration.test_kills import check_ledgers, rounds_done
from redis.asyncio import Redis

from aggregator.checkpoint import SCHEMA, changed_windows
from aggregator.fold import Fold
from aggregator.store import TaskStore
from redis_session.connection import connect
from schemas.errors import InvariantError
from schemas.keys import TaskKeys
from schemas.names import TaskName
from schemas.params import model_digest

FILE = Path(__file__).parents[1] / "vectors" / "compatibility" / "redis_schema_1.json"
RECORDED = json.loads(FILE.read_text(encoding="utf-8"))
KEYS = TaskKeys(TaskName("pumps"))
every_recorded = pytest.mark.parametrize("recorded", RECORDED, ids=lambda each: each["name"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis_server(Path(tmp_path_factory.mktemp("upgrade"))) as server:
        yield server


@pytest.fixture
async def redis(server: servers.Server) -> AsyncIterator[Redis]:
    async with connect(f"redis://{servers.HOST}:{server.port}/0") as redis:
        await redis.flushall()
        yield redis


async def restored(redis: Redis, keys: dict[str, Any]) -> TaskStore:
    """The keys as they were, and a store that holds the task."""
    for key, value in keys.items():
        match value:
            case {"hash": fields}:
                await redis.hset(key, mapping={k: bytes.fromhex(v) for k, v in fields.items()})
            case {"string": text}:
                await redis.set(key, bytes.fromhex(text))
            case {"set": members}:
                await redis.sadd(key, *members)
            case {"stream": entries}:
                for entry_id, fields in entries:
                    await redis.xadd(
                        key, {k: bytes.fromhex(v) for k, v in fields.items()}, id=entry_id
                    )
    store = TaskStore(redis, KEYS, "token")
    assert await store.hold(60_000)
    return store


@every_recorded
@pytest.mark.parametrize("batch", [1, 5, 1000])
async def test_the_log_of_an_older_fedmq_is_folded_on_to_the_same_bits(
    redis: Redis, recorded: dict[str, Any], batch: int
) -> None:
    store = await restored(redis, recorded["keys"])
    loaded = await store.load()
    assert loaded is not None
    state, position = loaded
    assert position.migrated
    assert state.proposed == max(state.releases), "what was published is not published again"
    fold = Fold(state)
    folded = 0
    while entries := await store.read(fold.state.cursor, count=batch, block_ms=1):
        fold.apply_all(entries)
        folded += len(entries)
        changes = fold.take_changes()
        committed = await store.commit(fold.state, changes, position, log_keep_ms=0)
        assert committed is not None
        assert not committed.migrated
        position = committed
    assert folded == recorded["entries"] - recorded["folded_entries"] > 20
    kept = {KEYS.blob(release.named.blob) for release in fold.state.releases.values()}
    assert {key.decode() for key in await redis.keys(KEYS.blob("*"))} == kept
    again = await store.load()
    assert again is not None
    assert not again[1].migrated
    for found in (fold.state, again[0]):
        assert found.spec is not None
        tally = found.tally
        assert {
            "version": found.model.version,
            "digest": model_digest(found.spec.params.digest, found.model.vectors["params"]).hex(),
            "folded": tally.folded,
            "duplicates": tally.duplicates,
            "rejected": tally.rejected,
            "payload_bytes": tally.payload_bytes,
            "staleness_sum": tally.staleness_sum,
            "cursor": str(found.cursor),
            "windows": {
                name: data.hex() for name, data in changed_windows(found, found.windows).items()
            },
        } == recorded["then"]


@every_recorded
async def test_a_store_of_a_newer_fedmq_is_refused_and_left_as_it_is(
    redis: Redis, recorded: dict[str, Any]
) -> None:
    store = await restored(redis, recorded["keys"])
    small = msgspec.json.decode(await redis.hget(KEYS.checkpoint, "small") or b"")
    newer = msgspec.json.encode(small | {"schema": SCHEMA + 1})
    await redis.hset(KEYS.checkpoint, "small", newer)
    with pytest.raises(InvariantError, match="update it"):
        await store.load()
    assert await redis.hget(KEYS.checkpoint, "small") == newer


# -- under way ----------------------------------------------------------------------------------


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Stack]:
    with (
        servers.mosquitto(tmp_path) as broker,
        servers.redis_server(tmp_path) as redis,
        stack(tmp_path, broker, redis, devices=3, rounds=200) as running,
    ):
        yield running


def progress(fleet: Stack) -> None:
    goal = rounds_done(fleet) + 10
    eventually(lambda: rounds_done(fleet) >= goal, f"{goal} rounds")


def test_bridge_and_aggregator_are_replaced_one_at_a_time_and_nothing_is_lost(
    fleet: Stack, tmp_path: Path
) -> None:
    def next_aggregator(number: int) -> Process:
        command = fedmq("aggregator", "--redis-url", fleet.redis_url, "--lease-s", "1")
        return Process(command, tmp_path / f"aggregator-{number}.log")

    held = f"waiting task={TASK}: another aggregator holds it"
    progress(fleet)
    for number in (2, 3):
        waiting = next_aggregator(number)
        waiting.start()
        try:
            eventually(lambda log=waiting.log: held in log.read_text(), "the next one waits")
            fleet.aggregator.stop()
            eventually(lambda log=waiting.log: "loaded task" in log.read_text(), "it takes over")
        except BaseException:
            waiting.kill()
            raise
        fleet.aggregator = waiting
        progress(fleet)
        fleet.bridge.stop()  # devices go on publishing: mosquitto keeps it for the next bridge
        fleet.bridge.start()
        progress(fleet)
    try:
        check_ledgers(fleet)
    finally:
        fleet.aggregator.stop()
