"""What the commands that read a task's history share: where it lies, and a fold with progress."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from redis.asyncio import Redis
from rich.console import Console

from aggregator.depot import Depot
from aggregator.history import History, entries, open_history
from aggregator.replay import Replay
from aggregator.settings import AggregatorSettings
from fedmq.commands.running import read_settings, redis_for
from schemas.errors import ConfigError
from schemas.names import TaskName

Archive = Annotated[
    str | None,
    typer.Option(
        "--archive",
        help="Where the log is kept: a folder, or s3://bucket/prefix. "
        "[default: archive_url of the table [aggregator], or FEDMQ_ARCHIVE_URL]",
    ),
]
Offline = Annotated[bool, typer.Option("--offline", help="Read the archive alone, never Redis.")]
From = Annotated[
    Path | None,
    typer.Option("--from", help="Begin with an export, where what came before it is gone."),
]
EpochOf = Annotated[
    int | None, typer.Option("--epoch", help="Which life of the task, offline. [default: the last]")
]

_TOLD_EVERY: Final = 256


@dataclass(frozen=True, slots=True)
class Source:
    """Where a history comes from, as the command line said it."""

    config: Path | None
    redis_url: str | None
    archive: str | None
    offline: bool = False
    export: Path | None = None
    epoch: int | None = None


def depot_for(config: Path | None, archive: str | None) -> Depot | None:
    """The archive that flag, environment or file name; None: none. Raises ConfigError."""
    flags = {"archive_url": archive}
    url = read_settings(AggregatorSettings, "aggregator", config, flags).archive_url
    return Depot(url) if url else None


async def folded(
    task: TaskName,
    source: Source,
    make: Callable[[History], Replay],
    step: Callable[[Replay], bool] = lambda replay: replay.done,
) -> tuple[Replay, History]:
    """Fold a history from its beginning until `step`, called after every entry, says enough."""
    depot = depot_for(source.config, source.archive)
    if source.epoch is not None and not source.offline:
        raise ConfigError("epoch", "belongs to --offline: Redis knows only the living one")
    with Console(stderr=True).status(f"reading {task}") as status:
        async with _redis(source) as redis:
            history = await open_history(
                task, redis, depot, export=source.export, epoch=source.epoch
            )
            replay = make(history)
            stop = replay.done
            async for logged in entries(task, history, redis, depot):
                if stop:
                    break
                replay.apply(logged)
                stop = step(replay)
                if replay.findings.entries % _TOLD_EVERY == 0:
                    count = replay.findings.entries
                    status.update(f"{task}: {count:,} entries folded, version {replay.version}")
    if not stop and history.version is not None and replay.version != history.version:
        replay.findings.notes.append(
            f"Redis is at version {history.version}, this replay ends at {replay.version}"
        )
    return replay, history


@asynccontextmanager
async def _redis(source: Source) -> AsyncIterator[Redis | None]:
    if source.offline:
        yield None
        return
    async with redis_for(source.config, source.redis_url) as redis:
        yield redis
