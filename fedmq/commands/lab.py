"""`fedmq lab`: a whole server side on a laptop, to try one's own data and devices on."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from fedmq.commands.running import run
from fedmq.servers import Servers, servers
from schemas.errors import ConfigError, FedmqError

MQTT_PORT: Final = 1883
REDIS_PORT: Final = 6379


def lab(
    folder: Annotated[Path, typer.Option(help="Logs, and all that the tasks know.")] = Path(
        "fedmq-lab"
    ),
    mqtt_port: Annotated[int, typer.Option(min=1, max=65_535, help="Of the broker.")] = MQTT_PORT,
    redis_port: Annotated[int, typer.Option(min=1, max=65_535, help="Of Valkey.")] = REDIS_PORT,
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
    with _alone(folder):
        run(_serve(folder, mqtt_port, redis_port), "warning")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: two Valkeys would write one log. Raises ConfigError: another lab has it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl  # noqa: PLC0415 - not there is Windows, which has returned

    with (folder / "lab.pid").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            remedy = "stop it, or choose another --folder"
            told = f"{folder} belongs to a lab that runs (process {file.read().strip()})"
            raise ConfigError("folder", f"{told}: {remedy}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


async def _serve(folder: Path, mqtt_port: int, redis_port: int) -> None:
    async with AsyncExitStack() as stack:
        with Console(stderr=True).status("starting broker, Valkey, bridge and aggregator"):
            starting = servers(folder, mqtt_port=mqtt_port, redis_port=redis_port)
            where = await stack.enter_async_context(starting)
        typer.echo(f"MQTT    127.0.0.1:{where.mqtt_port}")
        typer.echo(f"Redis   {where.redis_url}")
        typer.echo(f"files   {folder}/")
        if (where.mqtt_port, redis_port) != (MQTT_PORT, REDIS_PORT):
            typer.echo("other terminals find it by:")
            typer.echo(f"  export FEDMQ_MQTT_PORT={mqtt_port} FEDMQ_REDIS_URL={where.redis_url}")
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
