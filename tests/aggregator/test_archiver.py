"""The archive: no hole wherever its writer dies, no trim beyond it, no mark without the lease."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from aggregator import archiver as archiver_module
from aggregator import depot as depot_module
from aggregator.archiver import Archiver, BusyError, LostLeaseError, writing
from aggregator.depot import Depot
from aggregator.erasing import erase_archived
from aggregator.fold import Fold
from aggregator.history import entries, open_history
from aggregator.segments import GONE, BrokenArchiveError, Logged, SegmentName, pack, unpack
from aggregator.service import serve
from aggregator.settings import AggregatorSettings
from aggregator.store import TaskStore
from aggregator.tasks import create_task
from lifetimes.together import end
from redis_session.connection import connect
from schemas.errors import ConfigError
from schemas.keys import TaskKeys
from schemas.log import EntryId
from schemas.names import DeviceId, TaskName
from schemas.params import ParamSpec, TensorSpec
from schemas.task import TaskSpec

TASK = TaskName("kept")
KEYS = TaskKeys(TASK)
HOLDER = "holder"
SPEC = TaskSpec(ParamSpec((TensorSpec("w", (2,)),)))
EPOCH = 4


class PowerCutError(BaseException):
    """The process is gone; nobody catches it."""


class Life:
    """How many steps are left, and whether the last one is still carried out."""

    def __init__(self, lives: float = float("inf"), *, dies_after: bool = False) -> None:
        self.lives, self.dies_after = lives, dies_after

    def before(self) -> None:
        self.lives -= 1
        if self.lives < 0 and not self.dies_after:
            raise PowerCutError

    def after(self) -> None:
        if self.lives < 0:
            raise PowerCutError


class MortalRedis(Redis):
    life = Life()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self.life.before()
        answer = await super().execute_command(*args, **options)
        self.life.after()
        return answer


def mortal(life: Life, step: Callable[..., Any]) -> Callable[..., Any]:
    def stepping(*args: Any, **options: Any) -> Any:
        life.before()
        answer = step(*args, **options)
        life.after()
        return answer

    return stepping


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis_server(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
async def redis(server: servers.Server) -> AsyncIterator[Redis]:
    async with connect(url_of(server)) as redis:
        yield redis


@pytest.fixture(autouse=True)
async def _task(redis: Redis) -> None:
    await fresh(redis)


async def fresh(redis: Redis) -> None:
    """A task of 12 entries, held by us."""
    await redis.flushall()
    await create_task(redis, TASK, SPEC, np.ones(2, np.float32), epoch=EPOCH)
    await redis.set(KEYS.holder, HOLDER)
    await grow(redis, 11)


async def grow(redis: Redis, count: int, **fields: bytes) -> None:
    for _ in range(count):
        await redis.xadd(KEYS.log, {"k": b"tick"} | fields)


def url_of(server: servers.Server) -> str:
    return f"redis://{servers.HOST}:{server.port}/0"


def settings(folder: Path | str, **given: Any) -> AggregatorSettings:
    return AggregatorSettings(**({"archive_url": str(folder), "archive_bytes": 150} | given))


async def log_of(redis: Redis) -> list[Logged]:
    raw: Any = await redis.xrange(KEYS.log)
    return [Logged(EntryId.parse(entry_id), fields) for entry_id, fields in raw]


async def archiver_of(redis: Redis, folder: Path | str, **given: Any) -> Archiver:
    """One that has loaded the end of the log as its cursor."""
    found = Archiver(redis, TASK, HOLDER, settings(folder, **given))
    log = await log_of(redis)
    found.look(log[-1].id)
    return found


def archived(folder: Path) -> list[Logged]:
    """Read from the files alone, in the order of their names."""
    found: list[Logged] = []
    for path in sorted((folder / TASK / f"{EPOCH:05d}").glob("*.seg")):
        found += unpack(path.name, path.read_bytes()).entries
    return found


def parts(folder: Path) -> list[Path]:
    """What a dead writer has left half-written."""
    return list(folder.glob("**/*.part"))


async def whole(redis: Redis, folder: Path) -> list[Logged]:
    """Archive and stream, as a replay reads them."""
    depot = Depot(str(folder))
    history = await open_history(TASK, redis, depot)
    history.end = None
    found = [logged async for logged in entries(TASK, history, redis, depot)]
    assert history.notes == []
    return found


async def test_what_was_folded_is_sealed_and_read_again(redis, tmp_path) -> None:
    log = await log_of(redis)
    archiver = await archiver_of(redis, tmp_path)
    assert archiver.bound == EntryId()
    assert await archiver.seal() == 4
    assert archiver.bound == log[-1].id
    assert archived(tmp_path) == log
    assert await redis.hget(KEYS.archived, "id") == str(log[-1].id).encode()
    depot = Depot(str(tmp_path))
    origin = depot.origin(TASK, EPOCH)
    assert origin == np.ones(2, "<f4").tobytes()
    await redis.delete(KEYS.log)
    assert await whole(redis, tmp_path) == log


async def test_what_was_not_committed_is_not_sealed(redis, tmp_path) -> None:
    log = await log_of(redis)
    archiver = Archiver(redis, TASK, HOLDER, settings(tmp_path))
    archiver.look(log[6].id)
    await archiver.seal()
    assert archived(tmp_path) == log[:7]
    assert archiver.bound == log[6].id


async def trim(redis: Redis, bound: EntryId | None, log: list[Logged]) -> None:
    """As hard as the bounds allow."""
    greedy = AggregatorSettings(log_keep_bytes=1, dead_keep_s=0)
    await TaskStore(redis, KEYS, HOLDER).tidy(log[-1].id, greedy, archived=bound)


async def test_nothing_is_trimmed_that_was_not_archived(redis, tmp_path) -> None:
    log = await log_of(redis)
    archiver = await archiver_of(redis, tmp_path)
    await trim(redis, archiver.bound, log)
    assert await log_of(redis) == log
    archiver.look(log[4].id)
    await archiver.seal()
    await grow(redis, 3)
    everything = await log_of(redis)
    await trim(redis, archiver.bound, everything)
    left = await log_of(redis)
    assert left == everything[4:]
    assert await whole(redis, tmp_path) == everything


async def test_without_an_archive_the_log_is_trimmed_as_ever(redis) -> None:
    log = await log_of(redis)
    archiver = Archiver(redis, TASK, HOLDER, AggregatorSettings())
    assert archiver.bound is None
    await trim(redis, archiver.bound, log)
    assert await log_of(redis) == []


async def test_a_commit_trims_by_age_but_nothing_that_was_not_archived(redis) -> None:
    await redis.config_set("stream-node-max-entries", 1)  # `~` keeps whole nodes
    store = TaskStore(redis, KEYS, HOLDER)
    loaded = await store.load()
    assert loaded is not None
    state, position = loaded
    await redis.xtrim(KEYS.log, maxlen=0, approximate=False)
    for ms in range(1, 13):
        await redis.xadd(KEYS.log, {"k": b"tick"}, id=f"{2 * EntryId(ms).ms + 10**13}-0")
    log = await log_of(redis)
    fold = Fold(state)
    fold.state.cursor = log[-1].id
    for archived_until, kept in ((EntryId(), log), (log[4].id, log[4:]), (None, log[-1:])):
        done = await store.commit(
            fold.state, fold.take_changes(), position, log_keep_ms=1, archived=archived_until
        )
        assert done is not None
        position = done
        assert await log_of(redis) == kept


async def test_an_archive_that_redis_does_not_know_is_told(redis, tmp_path) -> None:
    await (await archiver_of(redis, tmp_path)).seal()
    await redis.delete(KEYS.archived)
    depot = Depot(str(tmp_path))
    history = await open_history(TASK, redis, depot)
    assert len([each async for each in entries(TASK, history, redis, depot)]) == 12
    (note,) = history.notes
    assert "another history" in note


async def survive(
    server: servers.Server, folder: Path, life: Life, monkeypatch: pytest.MonkeyPatch
) -> bool:
    """Seal in two goes, and die once; then another process goes on. Tells whether it died."""
    async with connect(url_of(server)) as plain:
        await fresh(plain)
        log = await log_of(plain)
        died = False
        async with MortalRedis.from_url(url_of(server)) as redis:
            redis.life = life
            with monkeypatch.context() as patch:
                patch.setattr(depot_module.os, "fsync", mortal(life, os.fsync))
                patch.setattr(Path, "replace", mortal(life, Path.replace))
                patch.setattr(Depot, "remove", mortal(life, Depot.remove))
                archiver = Archiver(redis, TASK, HOLDER, settings(folder))
                archiver.look(log[5].id)
                try:
                    await archiver.seal()
                    archiver.look(log[-1].id)
                    await archiver.seal()
                except PowerCutError:
                    died = True
        life.lives = float("inf")
        await plain.delete(KEYS.archiving)  # its time has run out
        next_one = Archiver(plain, TASK, HOLDER, settings(folder))
        next_one.look(log[8].id)
        await next_one.adopt()
        await trim(plain, next_one.bound, log)
        assert await whole(plain, folder) == log, "there is a hole"
        next_one.look(log[-1].id)
        await next_one.seal()
        assert archived(folder) == log
        assert not parts(folder)
        await trim(plain, next_one.bound, log)
        assert await whole(plain, folder) == log
    return died


@pytest.mark.parametrize("dies_after", [False, True])
async def test_wherever_it_dies_there_is_no_hole(server, tmp_path, monkeypatch, dies_after) -> None:
    lives = 0
    while await survive(
        server, tmp_path / str(lives), Life(lives, dies_after=dies_after), monkeypatch
    ):
        lives += 1
    assert lives > 30, "the story has fewer steps than it should: the harness is blind"


async def test_the_harness_finds_a_mark_that_moves_before_the_file(
    server, tmp_path, monkeypatch
) -> None:
    write = Archiver._write

    async def mark_first(self: Archiver, found: list[Logged], tail: Any) -> None:
        data = pack(TASK, found, "" if tail is None else tail.hash)
        await self._move_mark(archiver_module.Tail(found[-1].id, archiver_module.hash_of(data)))
        await write(self, found, tail)

    monkeypatch.setattr(Archiver, "_write", mark_first)
    with pytest.raises((AssertionError, ConfigError)):
        await test_wherever_it_dies_there_is_no_hole(server, tmp_path, monkeypatch, False)


async def test_who_lost_the_lease_cannot_move_the_mark(redis, tmp_path, monkeypatch) -> None:
    log = await log_of(redis)
    archiver = Archiver(redis, TASK, HOLDER, settings(tmp_path))
    archiver.look(log[3].id)
    await archiver.seal()
    noted = await redis.hgetall(KEYS.archived)
    archiver.look(log[-1].id)
    await redis.set(KEYS.holder, "another")
    with pytest.raises(LostLeaseError):
        await archiver.seal()
    assert await redis.hgetall(KEYS.archived) == noted
    assert archived(tmp_path) == log[:4]
    await redis.set(KEYS.holder, HOLDER)
    write = Depot.write

    def lost_meanwhile(self: Depot, file: str, data: bytes) -> None:
        import redis as redis_py

        write(self, file, data)
        port = redis.connection_pool.connection_kwargs["port"]
        redis_py.Redis(port=port).set(KEYS.holder, "another")

    monkeypatch.setattr(Depot, "write", lost_meanwhile)
    with pytest.raises(LostLeaseError):
        await archiver.seal()
    assert await redis.hgetall(KEYS.archived) == noted
    assert archiver.bound == log[3].id


async def test_a_segment_that_nobody_noted_is_adopted_or_written_again(redis, tmp_path) -> None:
    log = await log_of(redis)
    archiver = Archiver(redis, TASK, HOLDER, settings(tmp_path))
    archiver.look(log[3].id)
    await archiver.seal()
    noted = await redis.hgetall(KEYS.archived)
    tail = noted[b"hash"].decode()
    for mine, adopted in ((log[4:7], True), ([*log[4:6], Logged(log[6].id, {b"x": b""})], False)):
        name = SegmentName(mine[0].id, mine[-1].id)
        file = tmp_path / TASK / f"{EPOCH:05d}" / str(name)
        file.write_bytes(pack(TASK, mine, tail))
        await redis.hset(KEYS.archived, mapping=noted)
        other = Archiver(redis, TASK, HOLDER, settings(tmp_path))
        other.look(log[-1].id)
        await other.adopt()
        assert file.exists() == adopted
        assert other.bound == (log[6].id if adopted else log[3].id)


async def test_a_segment_of_what_is_not_committed_here_is_not_believed(redis, tmp_path) -> None:
    log = await log_of(redis)
    archiver = Archiver(redis, TASK, HOLDER, settings(tmp_path))
    archiver.look(log[3].id)
    await archiver.seal()
    noted = await redis.hgetall(KEYS.archived)
    archiver.look(log[6].id)
    await archiver.seal()
    await redis.hset(KEYS.archived, mapping=noted)  # Redis has lost its last moments
    other = Archiver(redis, TASK, HOLDER, settings(tmp_path))
    other.look(log[5].id)
    await other.adopt()
    assert other.bound == log[3].id
    assert archived(tmp_path) == log[:4]


async def test_the_mark_is_found_again_from_the_folder(redis, tmp_path) -> None:
    await (await archiver_of(redis, tmp_path)).seal()
    noted = await redis.hgetall(KEYS.archived)
    await redis.delete(KEYS.archived)
    await grow(redis, 5)
    again = await archiver_of(redis, tmp_path)
    await again.adopt()
    assert await redis.hgetall(KEYS.archived) == noted


async def test_an_archive_of_another_history_is_left_alone(redis, tmp_path) -> None:
    await (await archiver_of(redis, tmp_path)).seal()
    before = archived(tmp_path)
    await fresh(redis)  # the same epoch, other entries
    with pytest.raises(ConfigError, match="another history"):
        await (await archiver_of(redis, tmp_path)).seal()
    await redis.flushall()
    await create_task(redis, TASK, SPEC, np.zeros(2, np.float32), epoch=EPOCH)
    await redis.set(KEYS.holder, HOLDER)
    with pytest.raises(ConfigError, match="another task of this name"):
        await (await archiver_of(redis, tmp_path)).seal()
    assert archived(tmp_path) == before


async def test_an_archive_that_lost_its_newest_file_is_told_and_nothing_is_trimmed(
    redis, tmp_path
) -> None:
    await (await archiver_of(redis, tmp_path)).seal()
    newest = max(tmp_path.glob("**/*.seg"))
    newest.unlink()
    archiver = await archiver_of(redis, tmp_path)
    with pytest.raises(ConfigError, match="bring its files back"):
        await archiver.adopt()
    assert archiver.bound == EntryId()
    with pytest.raises(BrokenArchiveError, match="newest files are missing"):
        await whole(redis, tmp_path)


async def test_no_second_chain_begins_where_the_archive_is_not_mounted(
    redis, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(archiver_module, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(archiver_module, "LONGEST_PAUSE_S", 0.02)
    folder, away = tmp_path / "archive", tmp_path / "away"
    await (await archiver_of(redis, folder)).seal()
    noted = await redis.hgetall(KEYS.archived)
    serving = await archiver_of(redis, folder)
    await serving.adopt()
    folder.rename(away)
    await grow(redis, 5)
    log = await log_of(redis)
    serving.look(log[-1].id)  # it was there when this one began
    with pytest.raises(ConfigError, match="holds no segment"):
        await serving.seal()
    fresh_one = await archiver_of(redis, folder)
    running = [asyncio.create_task(fresh_one.run())]
    await until(lambda: "is it mounted" in caplog.text)
    assert serving.bound == fresh_one.bound == EntryId()
    await trim(redis, serving.bound, log)
    assert await log_of(redis) == log
    assert await redis.hgetall(KEYS.archived) == noted
    assert not folder.exists(), "not even its origin is written there"
    away.rename(folder)
    await until(lambda: fresh_one.bound == log[-1].id)
    await end(running)
    await serving.adopt()
    assert serving.bound == log[-1].id
    assert archived(folder) == log


async def test_another_archive_is_begun_when_the_operator_says_so(redis, tmp_path) -> None:
    await (await archiver_of(redis, tmp_path / "old")).seal()
    other = await archiver_of(redis, tmp_path / "new")
    with pytest.raises(ConfigError, match=f"delete {KEYS.archived} in Redis"):
        await other.seal()
    await redis.delete(KEYS.archived)
    await other.seal()
    assert archived(tmp_path / "new") == await log_of(redis)


@pytest.mark.parametrize("harm", ["missing", "altered"])
async def test_a_history_with_a_broken_segment_is_refused(redis, tmp_path, harm) -> None:
    await (await archiver_of(redis, tmp_path)).seal()
    second = sorted(tmp_path.glob("**/*.seg"))[1]
    if harm == "missing":
        second.unlink()
    else:
        data = second.read_bytes()
        second.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(BrokenArchiveError):
        await whole(redis, tmp_path)


async def test_a_log_that_was_trimmed_without_an_archive_is_told(redis, tmp_path) -> None:
    log = await log_of(redis)
    await (await archiver_of(redis, tmp_path)).seal()
    history = await open_history(TASK, redis, None)
    history.end, history.started_ms = None, log[0].id.ms
    await redis.xtrim(KEYS.log, minid=f"{log[-1].id.ms + 1}")
    await grow(redis, 1)
    with pytest.raises(ConfigError, match="trimmed, and no archive"):
        [logged async for logged in entries(TASK, history, redis, None)]


# -- trouble -----------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_failing_archive_is_told_once_and_tried_again(
    redis, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(archiver_module, "FIRST_PAUSE_S", 0.01)
    caplog.set_level(logging.INFO, "fedmq.aggregator")
    tries, write = [], Depot.write

    def full(self: Depot, file: str, data: bytes) -> None:
        if file.endswith(".seg"):
            tries.append(file)
            raise OSError(28, "No space left on device")
        write(self, file, data)

    monkeypatch.setattr(Depot, "write", full)
    archiver = await archiver_of(redis, tmp_path, archive_seconds=0.01)
    running = asyncio.create_task(archiver.run())
    await until(lambda: len(tries) > 3)
    assert archiver.bound == EntryId()
    monkeypatch.setattr(Depot, "write", write)
    log = await log_of(redis)
    await until(lambda: archiver.bound == log[-1].id)
    await end([running])
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    assert archived(tmp_path) == log


async def test_a_redis_that_refuses_the_archiver_is_told_once_and_tried_again(
    redis, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(archiver_module, "FIRST_PAUSE_S", 0.01)
    tries = []

    async def refusing(_self: Archiver) -> None:
        tries.append(1)
        raise ResponseError("NOREPLICAS Not enough good replicas to write.")

    mark = Archiver._mark
    monkeypatch.setattr(Archiver, "_mark", refusing)
    archiver = await archiver_of(redis, tmp_path, archive_seconds=0.01)
    running = asyncio.create_task(archiver.run())
    await until(lambda: len(tries) > 3)
    monkeypatch.setattr(Archiver, "_mark", mark)
    log = await log_of(redis)
    await until(lambda: archiver.bound == log[-1].id)
    await end([running])
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1


async def test_enough_bytes_are_sealed_at_once_and_few_after_their_time(redis, tmp_path) -> None:
    log = await log_of(redis)
    archiver = Archiver(redis, TASK, HOLDER, settings(tmp_path, archive_seconds=3600))
    archiver.look(log[0].id)
    running = asyncio.create_task(archiver.run())
    await asyncio.sleep(0.1)
    assert archived(tmp_path) == []
    archiver.look(log[-1].id, 150)
    await until(lambda: archiver.bound == log[-1].id)
    await end([running])


async def test_two_writers_never_write_at_once(redis, tmp_path) -> None:
    archiver = await archiver_of(redis, tmp_path)
    async with writing(redis, KEYS):
        with pytest.raises(BusyError):
            await archiver.seal()
    assert await archiver.seal() == 4


async def test_who_wrote_for_too_long_is_told_and_cannot_go_on(redis, caplog) -> None:
    async with writing(redis, KEYS) as mine:
        await mine.renew()
        assert 119_000 < await redis.pttl(KEYS.archiving) <= 120_000
        await redis.delete(KEYS.archiving)
        with pytest.raises(BusyError, match="longer than 120 s"):
            await mine.renew()
        async with writing(redis, KEYS):
            with pytest.raises(BusyError, match="longer than 120 s"):
                await mine.renew()
    assert "archive_slow" in caplog.text
    assert not await redis.exists(KEYS.archiving)


async def test_a_writer_of_before_a_clock_was_set_back_keeps_nobody_waiting(redis) -> None:
    await redis.set(KEYS.archiving, "dead:50", px=3_600_000)
    async with writing(redis, KEYS, 20.0):
        pass


async def test_an_object_store_is_written_through_its_backend(redis) -> None:
    import fsspec

    log = await log_of(redis)
    archiver = await archiver_of(redis, "memory://bucket/prefix")
    assert await archiver.seal() == 4
    names = fsspec.filesystem("memory").glob("/bucket/prefix/kept/00004/*")
    assert len(names) == 5
    depot = Depot("memory://bucket/prefix")
    history = await open_history(TASK, None, depot)
    assert [each async for each in entries(TASK, history, None, depot)] == log


@pytest.mark.parametrize("url", ["nonsense://x", "s3://bucket/prefix"])
def test_a_url_that_cannot_be_served_is_refused(url) -> None:
    with pytest.raises(ConfigError, match="archive_url"):
        Depot(url)


def test_a_url_that_is_refused_is_told_without_its_password() -> None:
    for url in ("ftpx://user:s3cret@host/x", "ftpx://user:s3/cr@et@host/x?key=s3cret"):
        with pytest.raises(ConfigError, match=r"'ftpx://\.\.\./x' cannot be used") as caught:
            Depot(url)
        assert "cret" not in str(caught.value)
        assert caught.value.__cause__ is None


# -- erasure -----------------------------------------------------------------------------------


async def test_an_erased_device_is_a_tombstone_in_a_chain_that_holds(redis, tmp_path) -> None:
    await grow(redis, 2, k=b"up", d=b"d", s=b"0", p=b"x")
    await grow(redis, 2, k=b"up", d=b"other", s=b"0", p=b"x")
    log = await log_of(redis)
    archiver = await archiver_of(redis, tmp_path)
    await archiver.seal()
    depot, until_id = Depot(str(tmp_path)), log[-1].id
    erased = await erase_archived(redis, TASK, depot, DeviceId("d"), until_id)
    assert (erased.entries, erased.joined) == (2, 0)
    left = [Logged(e.id, GONE) if e.fields.get(b"d") == b"d" else e for e in log]
    assert await whole(redis, tmp_path) == left
    await grow(redis, 3)
    later = await log_of(redis)
    archiver.look(later[-1].id)
    await archiver.seal()
    assert await whole(redis, tmp_path) == [*left, *later[len(log) :]]


async def test_an_erasure_that_was_interrupted_is_finished_by_the_next(
    redis, tmp_path, monkeypatch
) -> None:
    await grow(redis, 12, k=b"up", d=b"d", s=b"0", p=b"x")
    log = await log_of(redis)
    await (await archiver_of(redis, tmp_path)).seal()
    depot, write, written = Depot(str(tmp_path)), Depot.write, []

    def dying(self: Depot, file: str, data: bytes) -> None:
        if len(written) == 2:
            raise PowerCutError
        written.append(file)
        write(self, file, data)

    monkeypatch.setattr(Depot, "write", dying)
    with pytest.raises(PowerCutError):
        await erase_archived(redis, TASK, depot, DeviceId("d"), log[-1].id)
    monkeypatch.setattr(Depot, "write", write)
    with pytest.raises(BrokenArchiveError, match="run fedmq device erase again"):
        await whole(redis, tmp_path)
    erased = await erase_archived(redis, TASK, depot, DeviceId("d"), log[-1].id)
    assert erased.joined == 1
    assert all(e.gone for e in (await whole(redis, tmp_path))[12:])


# -- the service -------------------------------------------------------------------------------


async def test_the_aggregator_archives_what_it_folds(redis, server, tmp_path) -> None:
    await redis.delete(KEYS.holder)
    serving = settings(tmp_path, redis_url=url_of(server), archive_seconds=0.05)
    running = asyncio.create_task(serve(serving))
    log = await log_of(redis)
    try:
        await until(lambda: len(archived(tmp_path)) == len(log))
    finally:
        await end([running])
    assert archived(tmp_path) == log


async def test_the_aggregator_refuses_an_archive_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="archive_url"):
        await serve(AggregatorSettings(archive_url="nonsense://x"))
