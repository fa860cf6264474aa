"""A task with a bundle on real servers: created by a command, fetched by a device, ended again."""

import asyncio
import json
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiomqtt
import bundling
import numpy as np
import pytest
import redis as redis_py
import servers

from edge_agent.agent import Agent
from edge_agent.settings import AgentSettings
from edge_agent.trainer import TrainResult
from fedmq.bundle_folder import packed, write_folder
from schemas.bundle import Bundle, read_bundle, ref_of
from schemas.params import ParamSpec, TensorSpec
from tests.integration.stack import Process, fedmq

PARAMS = ParamSpec((TensorSpec("w", (4,)), TensorSpec("mean", (2,), "buffer")))
BALLAST = np.random.default_rng(1).bytes(120_000)
BUNDLE = read_bundle(bundling.packed(PARAMS, bundling.graph("step", ballast=BALLAST)))
DATA = packed(BUNDLE)
THETA0 = {"w": np.arange(4, dtype=np.float32), "mean": np.ones(2, np.float32)}
CHUNK_BYTES = 512
REF = ref_of(DATA, CHUNK_BYTES)
CHUNKS = -(-len(DATA) // CHUNK_BYTES)
TASK_TOML = f"""
[codec]
name = "float32"
[strategy]
buffer_size = 1
max_staleness = 1000
[publish]
chunk_bytes = {CHUNK_BYTES}
"""


@dataclass
class House:
    """Servers, commands, and a folder with a bundle."""

    broker: servers.Server
    redis: servers.Server
    folder: Path

    @property
    def bundle(self) -> str:
        return str(self.folder / "bundle")

    async def run(self, *arguments: str, code: int = 0) -> str:
        """One `fedmq` command; its output, or its error when another code is expected."""
        url = f"redis://127.0.0.1:{self.redis.port}/0"
        environ = os.environ | {"FEDMQ_REDIS_URL": url, "COLUMNS": "200"}
        done = await asyncio.to_thread(
            subprocess.run, fedmq(*arguments), capture_output=True, text=True, env=environ
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stderr if code else done.stdout

    async def create(self, task: str) -> str:
        path = self.folder / "task.toml"
        path.write_text(TASK_TOML)
        return await self.run("task", "create", task, "--bundle", self.bundle, "--spec", str(path))


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("bundle")
    write_folder(folder / "bundle", BUNDLE, THETA0)
    with servers.mosquitto(folder) as broker, servers.redis_server(folder) as redis:
        url = f"redis://127.0.0.1:{redis.port}/0"
        mqtt = ("--mqtt-port", str(broker.port))
        processes = [
            Process(fedmq("bridge", *mqtt, "--redis-url", url), folder / "bridge.log"),
            Process(fedmq("aggregator", "--redis-url", url), folder / "aggregator.log"),
        ]
        for process in processes:
            process.start()
        try:
            yield House(broker, redis, folder)
        finally:
            for process in processes:
                process.stop()


@dataclass
class Takes:
    """A trainer that is given its graphs."""

    taken: list[Bundle] = field(default_factory=list)

    def take_bundle(self, bundle: Bundle, _given: object) -> None:
        self.taken.append(bundle)

    def train(
        self, tensors: Mapping[str, Any], _options: object, _rng: np.random.Generator
    ) -> TrainResult:
        assert self.taken, "no training before the bundle"
        return TrainResult({name: value + 1 for name, value in tensors.items()}, num_examples=3)


@asynccontextmanager
async def device(
    house: House, task: str, name: str, *, silence_s: float = 5.0
) -> AsyncIterator[tuple[Agent, Takes]]:
    settings = AgentSettings(
        device=name,
        task=task,
        trainer="not:used",
        mqtt_port=house.broker.port,
        mqtt_connect_timeout_s=5,
        state_dir=str(house.folder / "state"),
        resend_s=0.5,
        reconnect_s=0.5,
        silence_s=silence_s,
    )
    trainer = Takes()
    async with Agent(settings, trainer) as agent:
        yield agent, trainer


def pieces(house: House, task: str, name: str) -> int:
    """Chunks of the bundle that a device has on its disk."""
    path = house.folder / "state" / f"{task}.{name}.sqlite"
    if not path.exists():
        return 0
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
        query = "SELECT count(*) FROM chunks WHERE blob = ?"
        return int(db.execute(query, (REF.blob,)).fetchone()[0])


async def until(condition: Any, what: str, patience_s: float = 60.0) -> None:
    try:
        async with asyncio.timeout(patience_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        pytest.fail(f"never happened: {what}")


async def test_a_device_gets_the_bundle_and_trains_with_it(house: House) -> None:
    assert f"a bundle of {len(DATA):,} bytes" in await house.create("gets")
    async with device(house, "gets", "one") as (agent, trainer):
        await agent.until(lambda: (agent.version or 0) >= 3)
        (bundle,) = trainer.taken
        assert bundle == BUNDLE
    shown = json.loads(await house.run("task", "show", "gets", "--json"))
    assert shown["spec"]["bundle"] == {
        "digest": REF.digest,
        "bytes": len(DATA),
        "chunk_bytes": CHUNK_BYTES,
    }
    assert shown["spec"]["needs"] == ["kinds", "bundle"]
    await house.run("model", "pull", "gets", "-o", str(house.folder / "pulled.npz"))
    with np.load(house.folder / "pulled.npz") as pulled:
        grown = pulled["w"] - THETA0["w"]
        assert grown.min() == grown.max() >= 3, "it began with the bundle's own model"


async def test_a_device_that_is_stopped_half_way_goes_on_where_it_was(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mqtt_session.session import Session

    asked: list[str] = []
    real = Session.subscribe

    async def subscribe(self: Session, filters: Any, *, qos: int) -> None:
        filters = list(filters)
        asked.extend(each for each in filters if f"/{REF.blob}/" in each)
        await real(self, filters, qos=qos)

    monkeypatch.setattr(Session, "subscribe", subscribe)
    await house.create("half")
    async with device(house, "half", "two") as (_, trainer):
        await until(lambda: pieces(house, "half", "two") >= 40, "some of it is here")
    have = pieces(house, "half", "two")
    assert 40 <= have < CHUNKS
    assert trainer.taken == []
    asked.clear()
    async with device(house, "half", "two") as (agent, trainer):
        await agent.until(lambda: (agent.version or 0) >= 1)
        assert trainer.taken == [BUNDLE]
    assert len(asked) == CHUNKS - have


async def test_a_device_refuses_a_bundle_that_somebody_has_altered(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    await house.create("altered")
    topic, at = f"fedmq/v1/altered/blob/{REF.blob}/100", 100 * CHUNK_BYTES
    chunk = DATA[at : at + CHUNK_BYTES]
    async with aiomqtt.Client(servers.HOST, house.broker.port) as client:
        await client.subscribe(topic, qos=1)
        async with asyncio.timeout(30):  # the bridge has published it
            await anext(aiter(client.messages))
        await client.publish(topic, chunk[:-1] + bytes([chunk[-1] ^ 1]), qos=1, retain=True)
        async with device(house, "altered", "three", silence_s=0.5) as (agent, trainer):
            await until(lambda: "bundle_refused" in caplog.text, "it is refused")
            assert trainer.taken == []
            assert agent.version is None
            await client.publish(topic, chunk, qos=1, retain=True)
            await agent.until(lambda: (agent.version or 0) >= 1)
            assert trainer.taken == [BUNDLE]


async def test_a_bundle_goes_with_its_task_into_a_clone_and_a_file_and_to_its_end(
    house: House,
) -> None:
    await house.create("whole")
    redis = redis_py.Redis(port=house.redis.port)

    def stored(task: str) -> Any:
        return redis.get(f"fedmq:{{{task}}}:blob:{REF.blob}")

    await until(lambda: redis.exists("fedmq:{whole}:manifest"), "it is published")
    file = str(house.folder / "whole.fedmq")
    await house.run("task", "clone", "whole", "cloned")
    await house.run("task", "export", "whole", "-o", file)
    await house.run("task", "import", file, "--name", "brought")
    assert stored("cloned") == stored("brought") == stored("whole") == DATA
    async with device(house, "brought", "four") as (agent, trainer):
        await agent.until(lambda: (agent.version or 0) >= 1)
        assert trainer.taken == [BUNDLE]
    async with aiomqtt.Client(servers.HOST, house.broker.port) as client:
        left: set[str] = set()

        async def listen() -> None:
            async for message in client.messages:
                topic = message.topic.value
                left.discard(topic) if not message.payload else left.add(topic)

        listening = asyncio.create_task(listen())
        await client.subscribe(f"fedmq/v1/brought/blob/{REF.blob}/+", qos=1)
        await until(lambda: len(left) == CHUNKS, "every chunk is retained")
        await house.run("task", "delete", "brought", "--yes")
        assert stored("brought") is None
        await until(lambda: not left, "the bridge has cleared every chunk")
        listening.cancel()


async def test_what_is_said_twice_or_not_at_all_is_refused_by_name(house: House) -> None:
    spec = house.folder / "params.toml"
    spec.write_text('[[params.tensors]]\nname = "w"\nshape = [4]\n')
    with_bundle = ("task", "create", "no", "--bundle", house.bundle)
    told = await house.run(*with_bundle, "--spec", str(spec), code=2)
    assert "params: are the bundle's" in told
    told = await house.run(*with_bundle, "--init", str(house.folder / "x.npz"), code=2)
    assert "init: goes without" in told
    assert "spec: is missing" in await house.run("task", "create", "no", code=2)
    told = await house.run("task", "create", "no", "--bundle", str(house.folder), code=2)
    assert "fedmq model import makes a bundle" in told


async def test_a_bundle_never_changes_and_a_new_file_keeps_it(house: House) -> None:
    await house.run("task", "create", "stays", "--bundle", house.bundle)
    spec = json.loads(await house.run("task", "show", "stays", "--json"))["spec"]
    assert (spec["train"]["batch_size"], spec["train"]["learning_rate"]) == (32, 0.05)
    told = await house.run("task", "update", "stays", "--set", "bundle.bytes=7", code=2)
    assert "bundle: cannot be set" in told
    path = house.folder / "again.toml"
    path.write_text("[train]\nlearning_rate = 0.25\n")
    await house.run("task", "update", "stays", "--spec", str(path))
    again = json.loads(await house.run("task", "show", "stays", "--json"))["spec"]
    assert again["train"]["learning_rate"] == 0.25
    assert (again["bundle"], again["needs"]) == (spec["bundle"], spec["needs"])
