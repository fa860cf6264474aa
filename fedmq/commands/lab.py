"""`fedmq lab`: a whole server side on a laptop, to try one's own data and devices on."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedmq.commands.running import run
from fedmq.servers import Servers, servers
from schemas.errors import ConfigError, FedmqError


def lab(
    folder: Annotated[Path, typer.Option(help="Logs, and all that the tasks know.")] = Path(
        "fedmq-lab"
    ),
    mqtt_port: Annotated[int, typer.Option(min=1, max=65_535, help="Of the broker.")] = 1883,
    redis_port: Annotated[int, typer.Option(min=1, max=65_535, help="Of Valkey.")] = 6379,
) -> None:
    """Run a whole server side here: broker, Valkey, bridge and aggregator, until Ctrl-C.

    On loopback only, and at the ports where every other command looks by itself. Tasks live on in
    the folder: start it again, and it goes on. For laptops and tests: anyone on this machine may
    connect.

    Example: fedmq lab
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigError("folder", f"{folder} cannot be made: {exc.strerror}") from exc
    run(_serve(folder, mqtt_port, redis_port), "warning")


async def _serve(folder: Path, mqtt_port: int, redis_port: int) -> None:
    async with AsyncExitStack() as stack:
        with Console(stderr=True).status("starting broker, Valkey, bridge and aggregator"):
            starting = servers(folder, mqtt_port=mqtt_port, redis_port=redis_port)
            where = await stack.enter_async_context(starting)
        typer.echo(f"MQTT    127.0.0.1:{where.mqtt_port}")
        typer.echo(f"Redis   {where.redis_url}")
        typer.echo(f"files   {folder}/")
        typer.echo("Next, in another terminal: fedmq task create --help. Ctrl-C ends it.")
        await _until_one_ends(where, folder)


async def _until_one_ends(where: Servers, folder: Path) -> None:
    """Wait for ever. Raises FedmqError: one of the processes has ended by itself."""
    waiting = {asyncio.ensure_future(p.wait()): name for name, p in where.processes.items()}
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
    name = waiting[done.pop()]
    msg = f"{name} has ended; {folder / name}.log tells why"
    raise FedmqError(msg)
