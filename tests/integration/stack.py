"""A whole fedmq as real processes: broker, Redis, bridge, aggregator and agents, to be killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis as redis_py
import servers

ROOT = Path(__file__).resolve().parents[2]
TASK = "counting"


@dataclass
class Process:
    """One fedmq process that may be killed and started again."""

    command: Sequence[str]
    log: Path
    env: Mapping[str, str] | None = None
    cwd: Path = ROOT
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.cwd,
                env=self.env,
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None


@dataclass
class Device:
    """One agent, with its spool and its witness ledger."""

    name: str
    process: Process
    ledger: Path
    spool: Path
    first: int
    rounds: int

    @property
    def trained(self) -> list[int]:
        """Coordinates of the rounds that the trainer has begun to return."""
        text = self.ledger.read_text() if self.ledger.exists() else ""
        return [int(line) for line in text.split()]

    @property
    def open(self) -> int:
        """Updates that still wait for their Receipt."""
        if not self.spool.exists():
            return 0
        with sqlite3.connect(f"file:{self.spool}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM updates").fetchone()[0])

    @property
    def created(self) -> int:
        """Updates that its disk has ever held: every one is of a round of its own."""
        if not self.spool.exists():
            return 0
        with sqlite3.connect(f"file:{self.spool}?mode=ro", uri=True) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'created'").fetchone()
            return int.from_bytes(row[0], "big") if row else 0


@dataclass
class Stack:
    """All of them."""

    broker: servers.Server
    redis: servers.Server
    bridge: Process
    aggregator: Process
    devices: list[Device]
    folder: Path

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis.port}/0"

    def client(self) -> "redis_py.Redis":
        return redis_py.Redis(port=self.redis.port)

    def quiesce(self) -> None:
        """No new rounds from now on."""
        (self.folder / "stop").touch()


def fedmq(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedmq.cli", *arguments]


def run_fedmq(*arguments: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        fedmq(*arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | (env or {}),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def eventually(condition: Callable[[], bool], what: str, patience_s: float = 60.0) -> None:
    """Wait for a condition; a failure says what never happened."""
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, f"never happened: {what}"
        time.sleep(0.05)


@contextmanager
def stack(
    folder: Path, broker: servers.Server, redis: servers.Server, *, devices: int, rounds: int
) -> Iterator[Stack]:
    """Start everything on a task that counts rounds."""
    size = devices * rounds
    spec = folder / "task.toml"
    spec.write_text(
        f"""
        [[params.tensors]]
        name = "counts"
        shape = [{size}]
        [init]
        kind = "zeros"
        [codec]
        name = "float32"
        [strategy]
        buffer_size = 2
        server_lr = 2.0
        flush_after_s = 0.5
        max_staleness = 1000
        staleness.kind = "constant"
        """
    )
    redis_url = f"redis://127.0.0.1:{redis.port}/0"
    run_fedmq("task", "create", TASK, "--spec", str(spec), "--redis-url", redis_url)
    bridge = Process(
        fedmq("bridge", "--mqtt-port", str(broker.port), "--redis-url", redis_url),
        folder / "bridge.log",
    )
    aggregator = Process(
        fedmq("aggregator", "--redis-url", redis_url, "--lease-s", "1"), folder / "aggregator.log"
    )
    fleet = [_device(folder, broker.port, n, rounds) for n in range(devices)]
    everyone = [bridge, aggregator, *(device.process for device in fleet)]
    try:
        for process in everyone:
            process.start()
        yield Stack(broker, redis, bridge, aggregator, fleet, folder)
    finally:
        for process in everyone:
            if process.running:
                process.kill()


def _device(folder: Path, mqtt_port: int, number: int, rounds: int) -> Device:
    name = f"device-{number}"
    ledger = folder / f"{name}.ledger"
    options = {
        "ledger": ledger,
        "first": number * rounds,
        "rounds": rounds,
        "stop": folder / "stop",
        "pace_s": 0.05,
    }
    command = [sys.executable, "-m", "edge_agent", "--task", TASK, "--device", name]
    command += ["--trainer", "tests.integration.counting_trainer:CountingTrainer"]
    for key, value in options.items():
        command += ["--option", f"{key}={value}"]
    command += ["--mqtt-port", str(mqtt_port), "--state-dir", str(folder / "state")]
    command += ["--resend-s", "0.5", "--seed", str(number)]
    config = folder / f"{name}.toml"
    config.write_text("[agent]\nreconnect_s = 0.5\nresend_longest_s = 2\nsilence_s = 2\n")
    command += ["--config", str(config)]
    spool = folder / "state" / f"{TASK}.{name}.sqlite"
    process = Process(command, folder / f"{name}.log")
    return Device(name, process, ledger, spool, number * rounds, rounds)
