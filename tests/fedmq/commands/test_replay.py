"""`fedmq log`, `fedmq replay` and `fedmq device erase` against a real Redis and a real archive."""

import asyncio
import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from redis.asyncio import Redis

from aggregator.archiver import Archiver
from aggregator.fold import Fold
from aggregator.settings import AggregatorSettings
from aggregator.store import TaskStore
from aggregator.tasks import create_task
from redis_session.connection import connect
from schemas.codecs import CodecOptions
from schemas.keys import TaskKeys
from schemas.log import Arrived, Body, ModelSet, to_fields
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, ModelVersion, Seq, TaskName, shard_of
from schemas.params import ParamSpec, TensorSpec
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import PublishOptions, TaskSpec
from schemas.wire import encode_update

SIZE = 4
SPEC = TaskSpec(
    ParamSpec((TensorSpec("w", (SIZE,)),)),
    strategy=StrategyOptions(
        buffer_size=2, staleness=StalenessOptions("polynomial"), flush_after_s=0.0
    ),
    codec=CodecOptions("float32"),
    publish=PublishOptions(every=2),
)
HOLDER = "test"


@dataclass
class House:
    """A Redis, an archive, and a task that this process folds itself."""

    redis: Redis
    task: TaskName
    url: str
    folder: Path
    fold: Fold = field(init=False)
    seqs: dict[str, int] = field(default_factory=dict)
    models: dict[int, Any] = field(default_factory=dict)

    @property
    def keys(self) -> TaskKeys:
        return TaskKeys(self.task)

    async def begin(self) -> None:
        await create_task(self.redis, self.task, SPEC, np.zeros(SIZE, np.float32), epoch=1)
        self.store = TaskStore(self.redis, self.keys, HOLDER)
        assert await self.store.hold(600_000)
        loaded = await self.store.load()
        assert loaded is not None
        state, self.position = loaded
        self.fold = Fold(state)
        settings = AggregatorSettings(archive_url=str(self.folder), archive_bytes=400)
        self.archiver = Archiver(self.redis, self.task, HOLDER, settings)
        self.archiver.look(state.cursor)
        await self.drain()

    async def drain(self) -> None:
        """Fold and commit entry by entry, as an aggregator would; nothing is trimmed."""
        cursor = self.fold.state.cursor
        while entries := await self.store.read(cursor, count=1, block_ms=1):
            self.fold.apply_all(entries)
            changes = self.fold.take_changes()
            done = await self.store.commit(self.fold.state, changes, self.position, log_keep_ms=0)
            assert done is not None
            self.position, cursor = done, self.fold.state.cursor
            model = self.fold.state.model
            self.models[model.version] = model.vectors["params"].copy()
        self.archiver.look(cursor)

    async def append(self, body: Body) -> None:
        fields: Any = to_fields(body)
        await self.redis.xadd(self.keys.log, fields)
        await self.drain()

    async def send(self, device: str, step: float, *, back: int = 0) -> None:
        name, state = DeviceId(device), self.fold.state
        base = sorted(state.bases)[-1 - back]
        self.seqs[device] = self.seqs.get(device, 0) + 1
        update = ModelUpdate(
            epoch=state.epoch,
            boot=Boot(7),
            seq=Seq(self.seqs[device]),
            base_version=ModelVersion(base),
            base_digest=state.bases[base],
            spec_digest=SPEC.params.short_digest,
            codec=0,
            num_examples=1,
            payload=np.full(SIZE, step, "<f4").tobytes(),
        )
        data = encode_update(update)
        await self.append(Arrived(name, shard_of(name), data, len(data)))

    async def train(self) -> None:
        """Versions 1 to 4 by three devices; 0, 2 and 4 are published; one waits in the buffer."""
        for number in range(9):
            await self.send("abc"[number % 3], number + 1.0, back=number == 7)
        await self.send("c", 1.0)

    async def fedmq(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "fedmq.cli", *arguments],
            env=clean | {"FEDMQ_REDIS_URL": self.url, "NO_COLOR": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    async def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads((await self.fedmq(*arguments, "--json", code=code)).stdout)

    @property
    def archive(self) -> tuple[str, str]:
        return ("--archive", str(self.folder))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.redis_server(tmp_path_factory.mktemp("redis"), appendfsync="no") as server:
        yield server


@pytest.fixture
async def house(server: servers.Server, tmp_path: Path) -> Any:
    url = f"redis://{servers.HOST}:{server.port}/0"
    async with connect(url) as redis:
        await redis.flushall()
        house = House(redis, TaskName("pumps"), url, tmp_path / "archive")
        await house.begin()
        yield house


async def test_the_log_says_who_made_a_version(house) -> None:
    await house.train()
    rows = (await house.json("log", "pumps", "--version", "4"))["updates"]
    assert [(r["device"], r["seq"], r["version"]) for r in rows] == [("a", 3, 4), ("b", 3, 4)]
    assert [(r["base"], r["staleness"]) for r in rows] == [(2, 1), (0, 3)]
    assert [r["weight"] for r in rows] == pytest.approx([2**-0.5, 0.5])
    assert [r["norm"] for r in rows] == pytest.approx([14.0, 16.0])
    shown = (await house.fedmq("log", "pumps", "--version", "4")).stdout
    assert "2 updates of 2 devices (2 folded), weight 1.207, into versions 4 to 4" in shown


async def test_the_log_of_a_device_and_its_last_rows_as_csv(house) -> None:
    await house.train()
    said = (await house.fedmq("log", "pumps", "--device", "c", "--csv")).stdout
    rows = list(csv.DictReader(said.splitlines()))
    assert [row["outcome"] for row in rows] == ["folded", "folded", "folded", "folded"]
    rows = (await house.json("log", "pumps", "--last", "2"))["updates"]
    assert [row["device"] for row in rows] == ["c", "c"]


async def test_what_waits_and_what_a_rollback_dropped_is_told(house) -> None:
    for device in ("a", "b", "c"):
        await house.send(device, 1.0)
    rows = (await house.json("log", "pumps"))["updates"]
    assert [row["outcome"] for row in rows] == ["folded", "folded", "buffered"]
    await house.append(ModelSet(house.models[0].tobytes(), 0))
    document = await house.json("log", "pumps")
    assert [row["outcome"] for row in document["updates"]] == ["folded", "folded", "dropped"]
    assert document["summary"]["weight"] == 2.0


async def test_an_audit_of_an_honest_log_agrees(house) -> None:
    await house.train()
    document = await house.json("replay", "pumps")
    assert (document["version"], document["same"], document["different"]) == (5, 3, [])
    said = (await house.fedmq("replay", "pumps")).stdout
    assert "3 published versions have the recorded digest, 0 another" in said


async def test_an_audit_of_an_altered_log_fails(house) -> None:
    await house.train()
    (entry_id, fields) = (await house.redis.xrange(house.keys.log))[2]
    log = await house.redis.xrange(house.keys.log)
    await house.redis.delete(house.keys.log)
    fields = fields | {b"p": fields[b"p"][:-1] + bytes([fields[b"p"][-1] ^ 1])}
    for known, each in log:
        await house.redis.xadd(house.keys.log, fields if known == entry_id else each, id=known)
    done = await house.fedmq("replay", "pumps", code=1)
    assert "version 2 (entry" in done.stdout


async def test_a_version_that_was_never_published_can_be_had(house, tmp_path) -> None:
    await house.train()
    file = tmp_path / "model.npz"
    said = (await house.fedmq("replay", "pumps", "--until", "3", "-o", str(file))).stdout
    assert f"{file}: version 3" in said
    assert np.load(file)["w"].tolist() == house.models[3].tolist()
    refused = await house.fedmq("replay", "pumps", "--until", "99", code=2)
    assert "until: 99 is not reached: the log ends at version 5" in refused.stderr


async def test_a_history_without_a_device_leaves_out_what_it_gave(house, tmp_path) -> None:
    await house.send("a", 1.0)
    await house.send("b", 10.0)
    await house.send("a", 3.0)
    await house.send("a", 5.0)
    file = tmp_path / "without.npz"
    arguments = ("replay", "pumps", "--without", "b", "--without", "nobody", "-o", str(file))
    document = await house.json(*arguments)
    fresh = 1.0 / 2 + (3.0 + 5.0) * 2**-0.5 / 2
    assert np.load(file)["w"] == pytest.approx(np.full(SIZE, fresh), rel=1e-6)
    assert (document["same"], document["different"]) == (2, [])
    assert document["notes"] == ["nobody has sent nothing that this log holds"]


async def test_a_trimmed_log_needs_its_archive_or_an_export(house, tmp_path) -> None:
    await house.train()
    await house.archiver.seal()
    export = tmp_path / "pumps.fedmq"
    await house.fedmq("task", "export", "pumps", "-o", str(export))
    whole = await house.json("replay", "pumps")
    await house.redis.xtrim(house.keys.log, maxlen=1, approximate=False)
    await house.send("a", 1.0)
    for command in ("log", "replay"):
        refused = await house.fedmq(command, "pumps", code=2)
        assert "was trimmed, and no archive that was given holds it" in refused.stderr
    found = await house.json("replay", "pumps", *house.archive)
    assert (found["same"], found["different"]) == (3, [])
    assert found["entries"] == whole["entries"] + 1
    since = await house.json("replay", "pumps", "--from", str(export))
    assert (since["entries"], since["digest"]) == (1, found["digest"])


async def test_an_archive_alone_is_enough(house, tmp_path) -> None:
    await house.train()
    await house.archiver.seal()
    online = await house.json("replay", "pumps")
    await house.redis.flushall()
    offline = await house.json("replay", "pumps", *house.archive, "--offline")
    assert (offline["version"], offline["digest"]) == (online["version"], online["digest"])
    rows = (await house.json("log", "pumps", *house.archive, "--offline"))["updates"]
    assert len(rows) == 10
    refused = await house.fedmq("replay", "pumps", "--offline", code=2)
    assert "archive: say where it is" in refused.stderr
    refused = await house.fedmq("replay", "other", *house.archive, "--offline", code=2)
    assert "holds no such life of task 'other'" in refused.stderr


async def test_a_broken_archive_is_exit_code_1(house) -> None:
    await house.train()
    await house.archiver.seal()
    segments = sorted(house.folder.glob("**/*.seg"))
    assert len(segments) > 2
    segments[1].unlink()
    done = await house.fedmq("replay", "pumps", *house.archive, "--offline", code=1)
    assert "does not follow the segment before" in done.stderr
    assert segments[2].name in done.stderr


async def test_an_erasure_reaches_the_archive_and_a_replay_says_so(house) -> None:
    await house.train()
    await house.archiver.seal()
    refused = await house.fedmq("device", "erase", "pumps", "b", "--yes", code=2)
    assert "archive: pumps is archived: say where (--archive URL)" in refused.stderr
    erasing = asyncio.create_task(
        house.fedmq("device", "erase", "pumps", "b", "--yes", *house.archive)
    )
    while not erasing.done():  # this process is the aggregator
        await house.drain()
    said = (await erasing).stdout
    assert "3 of its updates in the archive are tombstones now" in said
    data = b"".join(path.read_bytes() for path in house.folder.glob("**/*.seg"))
    assert b"gone" in data
    rows = (await house.json("log", "pumps", *house.archive))["updates"]
    assert "b" not in {row["device"] for row in rows}
    done = await house.fedmq("replay", "pumps", *house.archive, code=1)
    assert "note: 3 updates were erased, the first at entry" in done.stderr
    assert "note: b was erased at entry" in done.stderr


@pytest.mark.parametrize("command", ["log", "replay"])
async def test_help_teaches_with_an_example(house, command) -> None:
    said = (await house.fedmq(command, "--help")).stdout
    assert f"Example: fedmq {command} pumps" in said
    assert "--archive" in said


async def test_mistakes_are_one_line_that_names_the_field(house, tmp_path) -> None:
    for arguments, words in (
        (("replay", "nowhere"), "task: 'nowhere' does not exist"),
        (("replay", "pumps", "--archive", "nonsense://x"), "archive_url: "),
        (("replay", "pumps", "--epoch", "1"), "epoch: belongs to --offline"),
        (("replay", "pumps", "--from", str(tmp_path / "none")), "from: cannot be read"),
        (("replay", "pumps", "--without", "No Name"), "device: "),
        (("replay", "pumps", "-o", str(tmp_path / "no" / "m.npz")), "output: "),
        (("log", "pumps", "--device", "No Name"), "device: "),
    ):
        (line,) = (await house.fedmq(*arguments, code=2)).stderr.splitlines()
        assert line.startswith(f"fedmq: {words}")
