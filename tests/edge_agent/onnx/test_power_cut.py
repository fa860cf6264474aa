"""A real device process that is killed, or told to end, in the middle of a round of a bundle."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_bundles
import pytest
import servers

from schemas.task import TrainOptions
from tests.edge_agent.onnx.house import DEVICE, eventually, house

pytest.importorskip("onnxruntime", reason="needs the extra [onnx-runtime]")

ENDLESS = TrainOptions(epochs=1_000_000, batch_size=4, seconds=600)
LONG = TrainOptions(epochs=1_000_000, batch_size=4, seconds=8)
ZEROS = np.zeros(onnx_bundles.softmax_params(4, 3).size, np.float32)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.mosquitto(tmp_path) as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "a.npz", x=rng.normal(size=(40, 4)), y=np.arange(40) % 3)
    return tmp_path


def half(home: Path) -> Path:
    """The round that is half done."""
    return home / "state" / f"pumps.{DEVICE}.round"


def log(home: Path) -> str:
    return (home / "log").read_text()


@contextmanager
def device(home: Path, broker: servers.Server, *more: str) -> "Iterator[subprocess.Popen[bytes]]":
    command = [sys.executable, "-m", "edge_agent", "--task", "pumps", "--device", DEVICE]
    command += ["--data", "a.npz", "--mqtt-port", str(broker.port), "--state-dir", "state"]
    command += ["--threads", "1", *more]
    environ = {n: t for n, t in os.environ.items() if not n.startswith("FEDMQ_")}
    environ |= {"PYTHONPATH": str(servers.ROOT)}
    with (home / "log").open("ab") as file:
        process = subprocess.Popen(command, cwd=home, env=environ, stderr=file)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_round_that_sigkill_has_cut_goes_on_and_its_update_comes(
    mosquitto: servers.Server, home: Path
) -> None:
    often = ("--checkpoint-s", "0.05")
    async with house(mosquitto, patience_s=120) as server:
        await server.publish_task(train=LONG)
        await server.publish_model(1, ZEROS)
        with device(home, mosquitto, *often) as process:
            await eventually(lambda: half(home).exists() or process.poll() is not None)
            process.send_signal(signal.SIGKILL)
            assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
        assert not any("/up/" in topic for topic, _ in server.heard), "it was in the middle"
        assert half(home).exists()
        assert "round_resumed" not in log(home)
        with device(home, mosquitto, *often):
            update = await server.update(1)
        assert log(home).count("round_resumed steps=") == 1
        assert update.num_examples == 40
        assert update.metrics["loss_after"] < update.metrics["loss_before"]
        assert not half(home).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_a_round_within_a_step_and_it_goes_on_later(
    mosquitto: servers.Server, home: Path, number: signal.Signals
) -> None:
    async with house(mosquitto, patience_s=120) as server:
        await server.publish_task(train=ENDLESS)
        await server.publish_model(1, ZEROS)
        with device(home, mosquitto, "--checkpoint-s", "0.05") as process:
            await eventually(half(home).exists)
            process.send_signal(number)
            assert await asyncio.to_thread(process.wait, 30) == 0
        assert half(home).exists()
        assert "stopped open=0" in log(home)
        assert "trainer_left_behind" not in log(home)
        assert "Traceback" not in log(home)
        with device(home, mosquitto):
            await eventually(lambda: "round_resumed" in log(home))
