"""A disk that takes nothing more, and then does again: a real limit of the system's."""

import asyncio
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers

from edge_agent.trainer import TrainResult
from tests.edge_agent.played_server import DEVICE, Model, Tiny, server_side

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux' own")

SPOOL = """
import sys
from pathlib import Path
from edge_agent.spool import DiskFull, Spool

spool, made, model = Spool(Path(sys.argv[1])), [], b"none"


def tried(name, do):
    try:
        do()
    except DiskFull as exc:
        print(name, "disk_full", exc, flush=True)
        return False
    print(name, "ok", flush=True)
    return True


def put():
    text = b"%d" % len(made) * 4000
    spool.put(lambda _: text, base=(1, len(made)), residual=text)
    made.append(text)


def adopt():
    spool.save(params=bytes(50_000), manifest=b"new")


for line in sys.stdin:
    if line == "work\\n":
        tried("put", put)
        tried("mark", lambda: spool.mark_sent(spool.boot, 1))
        tried("chunks", lambda: spool.add_chunks("blob", [(0, bytes(9000))]))
        tried("adopt", adopt)
        tried("settle", lambda: spool.settle(spool.boot, lambda seq: seq == 1))
    assert [each.message for each in spool.open_updates()] in (made, made[1:])
    assert spool.load("residual") == (made[-1] if made else None)
    assert spool.created == len(made)
    print("whole", flush=True)
"""

AGENT = """
import asyncio, sys
from pathlib import Path
from edge_agent import agent
from edge_agent.__main__ import main
from mqtt_session.backoff import Backoff

agent.RETRY = Backoff(0.05, 0.2)  # nobody waits for half a minute here
main(sys.argv[1:])
"""


def limit(pid: int, most: int) -> None:
    """Let no file of a process grow above this."""
    hard = resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))


def size_of_the_log(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


@pytest.mark.parametrize("spare", [0, 3000, 9000, 30_000])
def test_what_a_full_disk_refuses_is_told_and_what_is_there_stays(
    tmp_path: Path, spare: int
) -> None:
    path = tmp_path / "spool.sqlite"
    with subprocess.Popen(
        [sys.executable, "-c", SPOOL, str(path)],
        cwd=servers.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask(what: str) -> list[str]:
            assert process.stdin is not None
            assert process.stdout is not None
            print(what, file=process.stdin, flush=True)
            heard = []
            for line in process.stdout:
                if line == "whole\n":
                    return heard
                heard.append(line.strip())
            pytest.fail("it died")

        assert {line.split()[1] for line in ask("work")} == {"ok"}
        limit(process.pid, size_of_the_log(path) + spare)
        full = [ask("work") for _ in range(4)]
        refused = [line for turn in full for line in turn if "disk_full" in line]
        assert refused, "the disk was full"
        assert "put disk_full" in " ".join(refused)
        limit(process.pid, resource.RLIM_INFINITY)
        assert {line.split()[1] for line in ask("work")} == {"ok"}
        process.stdin.close()
        assert process.wait() == 0


class FullMeanwhile(Tiny):
    """The second time that it trains, something else fills the disk."""

    def train(
        self, tensors: Mapping[str, Any], options: object, rng: np.random.Generator
    ) -> TrainResult:
        if len(self.started_from) == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        return super().train(tensors, options, rng)


@dataclass
class Process:
    """An agent, and what it logs."""

    pid: int
    lines: list[str]

    async def told(self, text: str) -> None:
        while not any(text in line for line in self.lines):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def agent_process(
    broker: servers.Server, folder: Path, trainer: type[Tiny]
) -> AsyncIterator[Process]:
    given = {
        "--task": "pumps",
        "--device": DEVICE,
        "--trainer": f"{trainer.__module__}:{trainer.__name__}",
        "--mqtt-port": str(broker.port),
        "--state-dir": str(folder),
        "--resend-s": "0.2",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        AGENT,
        *(word for pair in given.items() for word in pair),
        cwd=servers.ROOT,
        env={"PYTHONPATH": f"{servers.ROOT}:{servers.ROOT}/tests", "FEDMQ_RECONNECT_S": "0.2"},
        stderr=asyncio.subprocess.PIPE,
    )
    there = Process(process.pid, [])

    async def read() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            there.lines.append(line.decode())

    reading = asyncio.create_task(read())
    try:
        yield there
        assert process.returncode is None, there.lines
        assert not [line for line in there.lines if "Traceback" in line]
    finally:
        process.kill()
        await process.wait()
        await reading


async def test_an_agent_outlives_a_full_disk_and_takes_the_model_when_there_is_room(
    mosquitto, tmp_path
) -> None:
    async with (
        server_side(mosquitto) as server,
        agent_process(mosquitto, tmp_path, Tiny) as process,
    ):
        await server.keep_spec()
        await server.keep_model(Model(1))
        first = await server.update()
        limit(process.pid, 1)
        await server.keep_model(Model(2))
        await process.told("link_ended error=disk_full")
        limit(process.pid, resource.RLIM_INFINITY)
        second = await server.update_from(Model(2))
        assert (second.boot, second.seq) == (first.boot, first.seq + 1)


async def test_what_cannot_be_kept_is_trained_again_when_there_is_room(mosquitto, tmp_path) -> None:
    async with (
        server_side(mosquitto) as server,
        agent_process(mosquitto, tmp_path, FullMeanwhile) as process,
    ):
        await server.keep_spec()
        await server.keep_model(Model(1))
        first = await server.update()
        await server.keep_model(Model(2))
        await process.told("ERROR disk_full error=")
        limit(process.pid, resource.RLIM_INFINITY)
        second = await server.update_from(Model(2))
        assert (second.boot, second.seq) == (first.boot, first.seq + 1)


async def test_a_receipt_that_meets_a_full_disk_is_heard_again(mosquitto, tmp_path) -> None:
    path = tmp_path / f"pumps.{DEVICE}.sqlite"
    async with (
        server_side(mosquitto) as server,
        agent_process(mosquitto, tmp_path, Tiny) as process,
    ):
        await server.keep_spec()
        await server.keep_model(Model(1))
        first = await server.update()
        limit(process.pid, 1)
        await server.settle(first)
        await process.told("link_ended error=disk_full")
        limit(process.pid, resource.RLIM_INFINITY)
        while True:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                if not db.execute("SELECT count(*) FROM updates").fetchone()[0]:
                    break
            await asyncio.sleep(0.05)
