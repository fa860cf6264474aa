"""The life of a task through the commands: real broker, Redis, bridge, aggregator and devices."""

import asyncio
import csv
import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiomqtt
import numpy as np
import pytest
import redis as redis_py
import servers

from edge_agent.agent import Agent
from edge_agent.settings import AgentSettings
from edge_agent.trainer import TrainResult
from schemas.evaluation import Evaluation
from schemas.names import DeviceId, in_canary
from tests.integration.stack import Process, fedmq

TASK_TOML = """
[params]
tensors = [{ name = "w", shape = [4] }, { name = "stem", shape = [2], kind = "frozen" }]
[init]
kind = "zeros"
[codec]
name = "float32"
[strategy]
buffer_size = 2
flush_after_s = 0.3
max_staleness = 1000
[evaluate]
min_devices = 1
"""


@dataclass
class House:
    """Servers and commands."""

    broker: servers.Server
    redis: servers.Server
    folder: Path

    async def run(self, *arguments: str, code: int = 0) -> str:
        """One `fedmq` command; its output, or its error when another code is expected."""
        url = f"redis://127.0.0.1:{self.redis.port}/0"
        environ = os.environ | {"FEDMQ_REDIS_URL": url, "COLUMNS": "200"}
        done = await asyncio.to_thread(
            subprocess.run, fedmq(*arguments), capture_output=True, text=True, env=environ
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.run(*arguments, "--json"))

    async def create(self, task: str, *assignments: str) -> None:
        path = self.folder / f"{task}.toml"
        path.write_text(TASK_TOML)
        await self.run("task", "create", task, "--spec", str(path))
        if assignments:
            sets = [part for each in assignments for part in ("--set", each)]
            await self.run("task", "update", task, *sets)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("life")
    with servers.mosquitto(folder) as broker, servers.redis_server(folder) as redis:
        url = f"redis://127.0.0.1:{redis.port}/0"
        mqtt = ("--mqtt-port", str(broker.port))
        processes = [
            Process(fedmq("bridge", *mqtt, "--redis-url", url), folder / "bridge.log"),
            Process(
                fedmq(
                    *("aggregator", "--redis-url", url),
                    *("--evaluate", "measured=tests.integration.measuring:Height"),
                    *("--evaluate-option", "measured.bad_from=3"),
                ),
                folder / "aggregator.log",
            ),
        ]
        for process in processes:
            process.start()
        try:
            yield House(broker, redis, folder)
        finally:
            for process in processes:
                process.stop()


class Stepping:
    """Adds one; says of every model how good it is: the mean of w."""

    def train(
        self, tensors: Mapping[str, Any], _options: object, _rng: np.random.Generator
    ) -> TrainResult:
        return TrainResult({n: t + 1 for n, t in tensors.items()}, num_examples=3)

    def evaluate(self, tensors: Mapping[str, Any]) -> Evaluation:
        return Evaluation(3, {"height": float(np.mean(tensors["w"]))})


@asynccontextmanager
async def fleet(house: House, task: str, count: int) -> AsyncIterator[list[Agent]]:
    async with AsyncExitStack() as stack:
        agents = []
        for number in range(count):
            settings = AgentSettings(
                device=f"{task}-{number}",
                task=task,
                trainer="not:used",
                mqtt_port=house.broker.port,
                mqtt_connect_timeout_s=5,
                state_dir=str(house.folder / "state"),
                resend_s=0.5,
                reconnect_s=0.5,
                silence_s=2,
            )
            agents.append(await stack.enter_async_context(Agent(settings, Stepping())))
        yield agents


async def until(condition: Any, what: str, patience_s: float = 60.0) -> Any:
    """Wait until an awaitable condition gives something true, and give it."""
    try:
        async with asyncio.timeout(patience_s):
            while not (found := await condition()):
                await asyncio.sleep(0.1)
            return found
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


async def version_of(house: House, task: str) -> int:
    client = redis_py.Redis(port=house.redis.port)
    raw: Any = await asyncio.to_thread(client.get, f"fedmq:{{{task}}}:metrics")
    return json.loads(raw)["version"] if raw else 0


async def test_pause_rests_the_fleet_and_resume_wakes_it(house) -> None:
    await house.create("pausing")
    async with fleet(house, "pausing", 2) as agents:
        await until(lambda: _reaches(house, "pausing", 2), "it trains")
        assert "paused (log position" in await house.run("task", "pause", "pausing")
        for agent in agents:
            await agent.until(lambda agent=agent: agent.resting == "the task is paused")
            await agent.until(lambda agent=agent: not agent.open_updates)
        created = sum(agent.created for agent in agents)
        version = await version_of(house, "pausing")
        assert (await house.json("task", "show", "pausing"))["phase"] == "paused"
        await house.run("task", "resume", "pausing")
        await until(lambda: _reaches(house, "pausing", version + 1), "it goes on")
        assert sum(agent.created for agent in agents) > created


async def _reaches(house: House, task: str, version: int) -> bool:
    return await version_of(house, task) >= version


async def test_a_task_finishes_by_its_condition_and_is_listed_so(house) -> None:
    await house.create("ending", "finish.versions=3")
    async with fleet(house, "ending", 2):
        await until(lambda: _phase(house, "ending", "finished"), "it finishes")
    assert await version_of(house, "ending") == 3
    (row,) = [each for each in await house.json("task", "list") if each["task"] == "ending"]
    assert (row["phase"], row["version"], row["published"]) == ("finished", 3, 3)


async def _phase(house: House, task: str, phase: str) -> bool:
    return (await house.json("task", "show", task))["phase"] == phase


async def test_versions_are_listed_with_what_devices_found_of_them(house) -> None:
    await house.create("judged", "finish.versions=4")
    async with fleet(house, "judged", 2):
        await until(lambda: _phase(house, "judged", "finished"), "it finishes")
    records = await house.json("model", "list", "judged")
    assert [record["version"] for record in records] == [0, 1, 2, 3, 4]
    for record in records[:2]:
        assert record["metrics"] == {"height": pytest.approx(record["version"], abs=1e-5)} or (
            record["devices"] == 0
        )
    assert any(record["metrics"] for record in records)
    table = list(csv.DictReader((await house.run("model", "list", "judged", "--csv")).splitlines()))
    assert [int(row["version"]) for row in table] == [0, 1, 2, 3, 4]
    assert any(row["height"] for row in table)


async def test_the_newest_versions_stand_on_the_broker_as_json(house) -> None:
    await house.create("shown", "finish.versions=2")
    async with fleet(house, "shown", 2):
        await until(lambda: _phase(house, "shown", "finished"), "it finishes")
    async with asyncio.timeout(20), aiomqtt.Client("127.0.0.1", house.broker.port) as client:
        await client.subscribe("fedmq/v1/shown/versions")
        async for message in client.messages:
            told = json.loads(bytes(message.payload))
            if told["versions"][-1]["version"] == 2:
                break
    assert told["versions"][-1]["status"] == "published"


async def test_the_server_measures_versions_and_its_gate_holds_a_worse_one_back(house) -> None:
    await house.create("measured", 'gate.by="server"', "gate.metric=height", "publish.keep=256")
    async with fleet(house, "measured", 2) as agents:

        async def held() -> list[int]:
            records = await house.json("model", "list", "measured")
            return [r["version"] for r in records if r["status"] == "held"]

        (first, *_) = await until(held, "a version is held back")
        assert all((agent.version or 0) < first for agent in agents)
    records = {r["version"]: r for r in await house.json("model", "list", "measured")}
    assert records[first]["server"] == {"height": -1.0}
    assert records[0]["server"] == {"height": 0.0}
    assert records[0]["server_examples"] == 100


async def test_versions_are_written_for_tensorboard_and_mlflow(house, monkeypatch) -> None:
    from mlflow.tracking import MlflowClient
    from tensorboardX.proto.event_pb2 import Event

    await house.create("drawn", "finish.versions=3")
    async with fleet(house, "drawn", 2):
        await until(lambda: _phase(house, "drawn", "finished"), "it finishes")
    records = await house.json("model", "list", "drawn")
    told = {r["version"]: r["metrics"]["height"] for r in records if r["metrics"]}
    folder = house.folder / "boards"
    said = await house.run("metrics", "drawn", "--tensorboard", str(folder))
    assert said == "4 versions of drawn written\n"
    (file,) = folder.glob("drawn-epoch-*/events*")
    drawn = {
        event.step: value.simple_value
        for event in _events(file.read_bytes(), Event)
        for value in event.summary.value
        if value.tag == "height"
    }
    assert drawn == pytest.approx(told)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{house.folder}/mlflow"
    await house.run("metrics", "drawn", "--mlflow", uri)
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("fedmq/drawn")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "height")
    assert {each.step: each.value for each in history} == pytest.approx(told)


def _events(data: bytes, kind: Any) -> Iterator[Any]:
    """TFRecords: length, its CRC, the event, its CRC."""
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 8], "little")
        yield kind.FromString(data[place + 12 : place + 12 + size])
        place += 16 + size


async def test_a_rollback_reaches_every_device(house) -> None:
    await house.create("rolled", "publish.keep=256")
    async with fleet(house, "rolled", 2) as agents:
        await until(lambda: _reaches(house, "rolled", 3), "it trains")
        await house.run("task", "pause", "rolled")
        for agent in agents:
            await agent.until(lambda agent=agent: not agent.open_updates)
        said = await house.run("model", "rollback", "rolled", "1", "--yes")
        assert "rolled back to version 1" in said
        newest = await version_of(house, "rolled")
        for agent in agents:
            await agent.until(lambda agent=agent: agent.version == newest)
        file = house.folder / "rolled.npz"
        await house.run("model", "pull", "rolled", "-o", str(file))
        assert np.load(file)["w"] == pytest.approx(np.ones(4))
        diff = await house.json("model", "diff", "rolled", "1")
        assert [tensor["changed"] for tensor in diff["tensors"]] == [0, 0]
        statuses = {r["version"]: r["status"] for r in await house.json("model", "list", "rolled")}
        assert statuses[2] == "withdrawn"


async def test_a_group_is_held_at_a_version_and_let_go(house) -> None:
    await house.create("held", "publish.keep=256")
    async with fleet(house, "held", 3) as agents:
        await until(lambda: _reaches(house, "held", 2), "it trains")
        await house.run("device", "tag", "held", "held-0", "lab")
        await house.run("model", "pin", "held", "lab", "1")
        await agents[0].until(lambda: agents[0].version == 1)
        held_at = await version_of(house, "held")
        await until(lambda: _reaches(house, "held", held_at + 2), "the others go on")
        assert agents[0].version == 1
        await house.run("model", "pin", "held", "lab", "--release")
        await agents[0].until(lambda: (agents[0].version or 0) > held_at)


async def test_a_version_that_is_swept_cannot_be_pinned(house) -> None:
    await house.create("swept", "publish.keep=2", "finish.versions=4")
    async with fleet(house, "swept", 2):
        await until(lambda: _phase(house, "swept", "finished"), "it finishes")
    said = await house.run("model", "pin", "swept", "lab", "0", code=2)
    assert said == (
        "fedmq: version: 0 is not kept (there are 3, 4); publish.keep says how many are\n"
    )


async def test_canaries_get_a_version_first_and_people_promote_it(house) -> None:
    await house.create("canary", "gate.patience_s=1000", "publish.keep=256")
    async with fleet(house, "canary", 4) as agents:
        await until(lambda: _reaches(house, "canary", 1), "it trains")
        await house.run("model", "canary", "canary", "--share", "0.5")
        waiting = await until(lambda: _waiting(house, "canary"), "a version waits")
        first = [a for n, a in enumerate(agents) if in_canary(DeviceId(f"canary-{n}"), 0.5)]
        others = [agent for agent in agents if agent not in first]
        assert first
        assert others, "both kinds are there"
        for agent in first:
            await agent.until(lambda agent=agent: agent.version == waiting)
        assert all((agent.version or 0) < waiting for agent in others)
        await house.run("model", "canary", "canary", "--promote")
        for agent in others:
            await agent.until(lambda agent=agent: (agent.version or 0) >= waiting)


async def _waiting(house: House, task: str) -> int | None:
    found: int | None = (await house.json("task", "show", task))["candidate"]
    return found


async def test_devices_are_listed_banned_and_erased(house) -> None:
    await house.create("people")
    async with fleet(house, "people", 2) as agents:
        await until(lambda: _reaches(house, "people", 3), "it trains")
        assert all(agent.created for agent in agents)
        rows = await until(lambda: _online(house, "people", 2), "both are there")
        assert sum(row["weight_share"] for row in rows) == pytest.approx(1.0)
        assert all(row["bytes_up"] > 0 and row["last_seen_ms"] > 0 for row in rows)
        await house.run("device", "ban", "people", "people-0")
        await until(lambda: _refused(house, "people"), "nothing is taken from it")
        shown = await house.json("device", "show", "people", "people-0")
        assert shown["banned"]
        said = await house.run("device", "erase", "people", "people-0", "--yes")
        assert "of its messages were deleted" in said
        shown = await house.json("device", "show", "people", "people-0")
        assert (shown["updates_folded"], shown["banned"]) == (0, True)
    client = redis_py.Redis(port=house.redis.port)
    log = client.xrange("fedmq:{people}:log")
    (erased,) = [place for place, (_, fields) in enumerate(log) if fields[b"k"] == b"erase"]
    senders = [fields.get(b"d") for _, fields in log[:erased]]
    assert b"people-1" in senders
    assert b"people-0" not in senders


async def _online(house: House, task: str, count: int) -> list[dict[str, Any]] | None:
    rows: list[dict[str, Any]] = await house.json("device", "list", task)
    return rows if [row["link"] for row in rows] == ["online"] * count else None


async def _refused(house: House, task: str) -> bool:
    return "banned" in (await house.json("task", "show", task))["updates_rejected"]


async def test_a_restore_raises_the_epoch_and_the_fleet_follows_by_itself(house) -> None:
    await house.create("moving")
    file = str(house.folder / "moving.fedmq")
    async with fleet(house, "moving", 2) as agents:
        await until(lambda: _reaches(house, "moving", 3), "it trains")
        said = await house.run("task", "export", "moving", "-o", file)
        assert "moving version" in said
        exported = await house.json("task", "show", "moving")
        await until(lambda: _reaches(house, "moving", exported["version"] + 2), "it goes on")
        refused = await house.run("task", "import", file, code=2)
        assert "exists already" in refused
        await house.run("task", "delete", "moving", "--yes")
        refused = await house.run("task", "import", file, "--epoch", "1", code=2)
        assert "epoch: 1 must be above" in refused
        await house.run("task", "import", file)
        restored = await until(lambda: _higher(house, "moving", exported["epoch"]), "it is back")
        models = agents[0].models()
        async with asyncio.timeout(30):
            async for model in models:
                if model.epoch == restored["epoch"]:
                    break
        await until(lambda: _reaches(house, "moving", restored["version"] + 2), "it trains on")


async def _higher(house: House, task: str, epoch: int) -> dict[str, Any] | None:
    shown: dict[str, Any] = await house.json("task", "show", task)
    return shown if shown.get("epoch", 0) > epoch else None


async def test_a_torn_file_changes_nothing(house) -> None:
    await house.create("torn")
    await until(lambda: _published(house, "torn"), "it is published")
    file = house.folder / "torn.fedmq"
    await house.run("task", "export", "torn", "-o", str(file))
    file.write_bytes(file.read_bytes()[:-100])
    said = await house.run("task", "import", str(file), "--name", "other", code=2)
    assert said.startswith("fedmq: file: is torn")
    assert said.count("\n") == 1
    assert "other" not in [row["task"] for row in await house.json("task", "list")]


async def _published(house: House, task: str) -> bool:
    return (await house.json("task", "show", task)).get("published") is not None


async def test_a_clone_begins_with_the_others_model(house) -> None:
    await house.create("mother", "finish.versions=2")
    async with fleet(house, "mother", 2):
        await until(lambda: _phase(house, "mother", "finished"), "it finishes")
    await house.run("task", "clone", "mother", "child", "--set", "finish.versions=0")
    await until(lambda: _published(house, "child"), "it is published")
    files = {name: house.folder / f"{name}.npz" for name in ("mother", "child")}
    for name, file in files.items():
        await house.run("model", "pull", name, "-o", str(file))
    assert np.array_equal(np.load(files["mother"])["w"], np.load(files["child"])["w"])


async def test_a_deleted_task_leaves_nothing_on_the_broker(house) -> None:
    await house.create("gone", "finish.versions=2")
    async with fleet(house, "gone", 2):
        await until(lambda: _phase(house, "gone", "finished"), "it finishes")
    await house.run("task", "delete", "gone", "--yes")
    there = redis_py.Redis(port=house.redis.port)
    await until(lambda: asyncio.to_thread(lambda: not there.keys("fedmq:{gone}:*")), "cleared")
    left = []
    async with asyncio.timeout(20), aiomqtt.Client("127.0.0.1", house.broker.port) as client:
        await client.subscribe("fedmq/v1/gone/#", qos=1)
        await client.publish("fedmq/v1/gone/end", b"", qos=1)
        async for message in client.messages:
            if message.topic.value == "fedmq/v1/gone/end":
                break
            left.append(message.topic.value)
    assert left == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("task", "update", "bad", "--set", "strategy.buffer_size=0"), "strategy.buffer_size"),
        (("task", "update", "bad", "--set", "strategy.colour=red"), "colour"),
        (("task", "update", "bad", "--set", "nonsense"), "TABLE.FIELD=VALUE"),
        (("task", "update", "bad", "--set", "params.tensors=[]"), "keeps its tensors"),
        (("task", "update", "bad", "--set", "gate.metric=accuracy"), "gate.canary"),
        (("task", "update", "bad"), "nothing to change"),
        (("task", "pause", "no-such-task"), "does not exist"),
        (("model", "pin", "bad", "lab"), "version"),
        (("model", "pin", "bad", "LAB", "0"), "no tag and no device"),
        (("model", "canary", "bad", "--promote"), "no version"),
        (("device", "ban", "bad", "Pump 7"), "device"),
        (("device", "show", "bad", "nobody"), "has sent nothing"),
        (("task", "import", "/no/such/file"), "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
async def test_bad_input_gets_one_line_and_changes_nothing(house, arguments, words) -> None:
    if "bad" not in [row["task"] for row in await house.json("task", "list")]:
        await house.create("bad")
        await until(lambda: _published(house, "bad"), "it is published")
    client = redis_py.Redis(port=house.redis.port)
    before = client.xlen("fedmq:{bad}:log")
    said = await house.run(*arguments, code=2)
    assert said.count("\n") == 1
    assert words in said
    assert client.xlen("fedmq:{bad}:log") == before
