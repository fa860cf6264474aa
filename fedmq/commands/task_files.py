"""`fedmq task export | import`: a task as one file."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from aggregator.archive import pack, unpack
from aggregator.moving import export_task, import_task
from fedmq.commands.running import Config, RedisUrl, redis_for
from schemas.errors import ConfigError
from schemas.names import task_name

Name = Annotated[str, typer.Argument(help="The task's name.")]


def export(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Write a whole task into one file: checkpoint, specification, marks, models, log.

    It is one consistent cut; the task goes on meanwhile. The file is complete or is not there.

    Example: fedmq task export pumps -o pumps-$(date +%F).fedmq
    """
    task = task_name(name)

    async def act() -> tuple[bytes, int, int]:
        async with redis_for(config, redis_url) as redis:
            backup = await export_task(redis, task)
        return pack(backup), backup.state.version, len(backup.tail)

    with Console(stderr=True).status(f"reading {task}"):
        data, version, waiting = asyncio.run(act())
        _write_whole(output, data)
    typer.echo(
        f"{output}: {task} version {version}, {waiting} entries not folded yet, {len(data):,} bytes"
    )


def _write_whole(path: Path, data: bytes) -> None:
    """Write beside, sync, and rename: a crash leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as exc:
        part.unlink(missing_ok=True)
        raise ConfigError("output", f"cannot be written: {exc}") from exc


def bring_back(
    file: Annotated[Path, typer.Argument(help="What `fedmq task export` has written.")],
    name: Annotated[
        str | None, typer.Option(help="Under another name. [default: the exported one]")
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(help="A higher epoch than the file's. [default: by itself]")
    ] = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Bring a task back from a file, under a higher epoch: the fleet follows by itself.

    Devices fetch the model again; updates that they made on models of the lost log are answered
    wrong_epoch. All of the task is there afterwards, or nothing has changed.

    Example: fedmq task import pumps-2026-11-23.fedmq
    """
    try:
        data = file.read_bytes()
    except OSError as exc:
        raise ConfigError("file", f"cannot be read: {exc}") from exc
    backup = unpack(data)
    task = backup.task if name is None else task_name(name)

    async def act() -> int:
        async with redis_for(config, redis_url) as redis:
            return await import_task(redis, task, backup, unix_s=time.time(), epoch=epoch)

    with Console(stderr=True).status(f"writing {task}"):
        number = asyncio.run(act())
    made = datetime.fromtimestamp(backup.made_ms / 1000, UTC)
    typer.echo(
        f"task {task} is back at version {backup.state.version} as of {made:%F %T} UTC, "
        f"epoch {number}"
    )
