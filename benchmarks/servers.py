"""The processes of a benchmark: mosquitto, redis-server, `fedmq` commands. Loopback, temporary."""

import getpass
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.report import MOSQUITTO, REDIS

HOST: Final = "127.0.0.1"
INFLIGHT: Final = 100
_PATIENCE_S: Final = 20.0


class ServerFailedError(Exception):
    """A server is not installed, ended, or did not answer in time."""


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def mosquitto(folder: Path, port: int) -> Iterator[int]:
    """A mosquitto that queues without bound; gives its process id."""
    config = folder / "mosquitto.conf"
    config.write_text(
        f"listener {port} {HOST}\n"
        "allow_anonymous true\n"
        "set_tcp_nodelay true\n"
        "persistence false\n"
        f"max_inflight_messages {INFLIGHT}\n"
        "max_queued_messages 1000000\n"
        f"user {getpass.getuser()}\n"
    )
    with _process([_there(MOSQUITTO, "mosquitto"), "-c", str(config)], folder, port) as pid:
        yield pid


@contextmanager
def redis_server(folder: Path, port: int) -> Iterator[int]:
    """A redis-server that syncs before it answers; gives its process id."""
    program = _there(REDIS, "redis-server")
    flags = f"--port {port} --bind {HOST} --dir {folder} --appendonly yes --appendfsync always"
    with _process([program, *flags.split(), "--save", ""], folder, port) as pid:
        yield pid


@contextmanager
def fedmq(folder: Path, *arguments: str) -> Iterator[int]:
    """One `fedmq` process; gives its process id."""
    with _process([sys.executable, "-m", "fedmq.cli", *arguments], folder, None) as pid:
        yield pid


def cpu_seconds(pid: int) -> float:
    """The CPU time a process has used; NaN where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _there(program: str | None, name: str) -> str:
    if program is None:
        raise ServerFailedError(f"{name} is not installed")
    return program


@contextmanager
def _process(command: Sequence[str], folder: Path, port: int | None) -> Iterator[int]:
    """Run one process, its output in `folder`, until the block ends."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
    name = Path(command[0]).name if port else command[3]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        try:
            if port:
                _until_listening(process, port, name)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _until_listening(process: subprocess.Popen[bytes], port: int, name: str) -> None:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            socket.create_connection((HOST, port), 1.0).close()
        except OSError as exc:
            if process.poll() is not None or time.monotonic() > until:
                raise ServerFailedError(f"{name} does not listen on port {port}") from exc
            time.sleep(0.02)
        else:
            return
