"""An agent that is to end while its trainer trains."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers

from edge_agent import worker
from edge_agent.agent import Agent
from edge_agent.exchange import exchange_now
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainer import Stopped, TrainResult
from tests.edge_agent.played_server import DEVICE, Model, Tiny, eventually, server_side


@dataclass
class Long(Tiny):
    """A round that lasts until it is let end."""

    began: threading.Event = field(default_factory=threading.Event)
    let: threading.Event = field(default_factory=threading.Event)

    def train(
        self, tensors: Mapping[str, Any], options: object, rng: np.random.Generator
    ) -> TrainResult:
        self.began.set()
        assert self.let.wait(60)
        return super().train(tensors, options, rng)


class Finishing(Long):
    """When it is told to stop its round ends, and is whole."""

    def stop(self) -> None:
        self.let.set()


class Obeying(Long):
    """When it is told to stop it does, and nothing has come of it."""

    def stop(self) -> None:
        self.let.set()

    def train(self, *arguments: Any) -> TrainResult:
        super().train(*arguments)
        raise Stopped


def settings(broker: Any, where: Path) -> AgentSettings:
    return AgentSettings(
        mqtt_port=broker.port,
        mqtt_connect_timeout_s=5,
        device=DEVICE,
        task="pumps",
        trainer="not:used",
        state_dir=str(where),
        silence_s=0.5,
        reconnect_s=0.2,
    )


def kept(broker: Any, where: Path) -> int:
    """Updates on the disk."""
    spool = Spool(where / settings(broker, where).spool_name)
    count = len(spool.open_updates())
    spool.close()
    return count


@pytest.mark.parametrize(("trainer", "updates"), [(Finishing, 1), (Obeying, 0)])
async def test_a_trainer_is_told_and_a_round_that_has_ended_is_kept(
    trainer: type[Long], updates: int, mosquitto, tmp_path, heard
) -> None:
    made = trainer()
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(1))
        async with Agent(settings(mosquitto, tmp_path), made) as agent:
            await eventually(made.began.is_set, "it trains")
            assert agent.working
        assert not agent.working
    assert kept(mosquitto, tmp_path) == updates
    assert heard.count("trainer_failed") == 0
    assert heard.count("trainer_left_behind") == 0


async def test_a_trainer_that_cannot_be_told_does_not_keep_the_agent(
    mosquitto, tmp_path, heard, monkeypatch
) -> None:
    monkeypatch.setattr(worker, "GRACE_S", 0.1)
    made = Long()
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(1))
        async with Agent(settings(mosquitto, tmp_path), made):
            await eventually(made.began.is_set, "it trains")
    assert heard.count("trainer_left_behind") == 1
    made.let.set()
    await eventually(lambda: not worker.anyone_left(), "its thread has ended")
    assert kept(mosquitto, tmp_path) == 0, "the spool was closed"


async def test_an_exchange_whose_time_is_up_keeps_the_round_that_runs(mosquitto, tmp_path) -> None:
    made = Long()
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(1))
        exchanging = asyncio.create_task(
            exchange_now(settings(mosquitto, tmp_path), made, within_s=1.5)
        )
        await eventually(made.began.is_set, "it trains")
        await asyncio.sleep(2)
        assert not exchanging.done()
        made.let.set()
        assert (await exchanging).open == 1
    assert kept(mosquitto, tmp_path) == 1


# -- a process -----------------------------------------------------------------------------------

DEAF = """
import pathlib, signal, time
from concurrent.futures import ThreadPoolExecutor
from edge_agent import worker

worker.GRACE_S = 0.3
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it

class Deaf:
    def train(self, tensors, options, rng):
        pathlib.Path("began").touch()
        ThreadPoolExecutor().submit(time.sleep, 3600).result()  # which a process waits for
"""


def started(broker: servers.Server, where: Path, *more: str) -> "subprocess.Popen[bytes]":
    (where / "deaf.py").write_text(DEAF)
    command = [sys.executable, "-m", "edge_agent", "--task", "pumps", "--device", DEVICE]
    command += ["--trainer", "deaf:Deaf", "--mqtt-port", str(broker.port), *more]
    environ = os.environ | {"PYTHONPATH": str(servers.ROOT)}
    with (where / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=where, env=environ, stderr=log)


@pytest.mark.parametrize(
    ("number", "more", "code"),
    [
        (signal.SIGTERM, (), 0),
        (signal.SIGINT, (), 0),
        (signal.SIGINT, ("--once",), 130),
    ],
    ids=str,
)
async def test_a_process_ends_though_its_trainer_never_does(
    number: signal.Signals, more: tuple[str, ...], code: int, mosquitto, tmp_path
) -> None:
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(1))
        process = started(mosquitto, tmp_path, *more)
        try:
            await eventually((tmp_path / "began").exists, "it trains")
            process.send_signal(number)
            assert await asyncio.to_thread(process.wait, 30) == code
        finally:
            process.kill()
            process.wait()
    told = (tmp_path / "log").read_text()
    assert "trainer_left_behind" in told
    assert ("stopped open=0" in told) == (not more)
    assert "Traceback" not in told
