"""The example of the README, to the letter, as processes: lab broker, Valkey, three pumps."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import servers
from integration.stack import ROOT, Process, eventually, fedmq, run_fedmq

PUMPS = ("pump-1", "pump-2", "pump-3")
FOLDER = Path("examples/pump_faults")


class Shop:
    """The running example."""

    def __init__(self, folder: Path, mqtt_port: int, redis_url: str) -> None:
        self.folder = folder
        self.mqtt_port = str(mqtt_port)
        self.redis_url = redis_url

    def status(self) -> dict[str, object]:
        return json.loads(
            run_fedmq("task", "show", "pumps", "--json", "--redis-url", self.redis_url)
        )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with (
        servers.lab_broker(tmp_path) as broker,
        servers.valkey(tmp_path) as redis,
        ExitStack() as stack,
    ):
        url = f"redis://127.0.0.1:{redis.port}/0"
        spec = str(FOLDER / "task.toml")
        run_fedmq("task", "create", "pumps", "--spec", spec, "--redis-url", url)
        mqtt = ("--mqtt-port", str(broker.port))
        commands = [fedmq("bridge", *mqtt, "--redis-url", url), fedmq("aggregator", "--redis", url)]
        for pump in PUMPS:
            command = [sys.executable, "-m", "edge_agent", "--task", "pumps", "--device", pump]
            command += ["--trainer", "examples.pump_faults.trainer:CsvTrainer"]
            command += ["--option", f"csv={FOLDER}/{pump}.csv", "--option", "label=fault"]
            commands.append([*command, *mqtt, "--state-dir", str(tmp_path / "state")])
        for number, command in enumerate(commands):
            process = Process(command, tmp_path / f"{number}.log")
            process.start()
            stack.callback(process.stop)
        yield Shop(tmp_path, broker.port, url)


def test_three_pumps_learn_faults_that_none_of_them_has_seen_alone(shop: Shop) -> None:
    eventually(lambda: int(str(shop.status().get("version") or 0)) >= 8, "eight versions")
    path = shop.folder / "model.npz"
    run_fedmq("model", "pull", "pumps", "-o", str(path), "--redis-url", shop.redis_url)
    with np.load(path) as archive:
        tensors = {name: archive[name] for name in archive.files}
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert any(np.abs(tensor).max() > 0 for tensor in tensors.values())


def test_tail_prints_what_goes_over_the_topics(shop: Shop) -> None:
    command = fedmq("tail", "pumps", "--count", "40", "--mqtt-port", shop.mqtt_port)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    kinds = {line.split()[1].split("/")[1] for line in done.stdout.splitlines()}
    assert {"spec", "model", "metrics", "up", "receipt"} <= kinds
    assert "folded" in done.stdout
