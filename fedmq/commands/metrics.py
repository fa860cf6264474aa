"""`fedmq metrics`: what versions were worth, into the tools that people look at."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from redis.asyncio import Redis
from rich.console import Console

from aggregator.tasks import last_commit, version_records
from fedmq.commands.running import Config, RedisUrl, redis_for
from schemas.errors import ConfigError, FedmqError
from schemas.names import TaskName, task_name

FOLLOW_S = 2.0
"""How often new versions are looked for."""


class Writer(Protocol):
    """One tool's door."""

    def write(self, version: int, at_ms: int, figures: Mapping[str, float]) -> None:
        """Write the figures of one version, made at `at_ms` milliseconds since 1970."""

    def close(self) -> None:
        """Nothing more comes."""


def metrics(
    name: Annotated[str, typer.Argument(help="The task's name.")],
    tensorboard: Annotated[
        Path | None, typer.Option(help="Write TensorBoard event files into this folder.")
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(help="Write into an MLflow tracking server, e.g. http://127.0.0.1:5000"),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Go on with every new version.")] = False,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Write what every version was worth into TensorBoard or MLflow.

    With --follow a version is written when the next one is there: until then devices may still
    report. CSV and JSON: fedmq model list --csv | --json. Needs the extra of the tool:
    pip install 'fedmq[tensorboard]' or 'fedmq[mlflow]'.

    Example: fedmq metrics pumps --tensorboard runs/pumps --follow
    """
    task = task_name(name)
    if (tensorboard is None) == (mlflow is None):
        raise ConfigError("tensorboard", "give one of --tensorboard DIR and --mlflow URI")

    async def act() -> int:
        async with redis_for(config, redis_url) as redis:
            epoch = (await last_commit(redis, task)).epoch
            writer = _writer(task, epoch, tensorboard, mlflow)
            try:
                return await _copy(redis, task, writer, follow=follow)
            finally:
                writer.close()

    with Console(stderr=True).status(f"writing the versions of {task}"):
        written = asyncio.run(act())
    typer.echo(f"{written} versions of {task} written")


async def _copy(redis: Redis, task: TaskName, writer: Writer, *, follow: bool) -> int:
    written: set[int] = set()
    while True:
        records = await version_records(redis, task)
        for record in records[:-1] if follow else records:
            if record["version"] not in written:
                version, at_ms = record["version"], record["at_ms"]
                figures = dict(figures_of(record))
                await asyncio.to_thread(writer.write, version, at_ms, figures)
                written.add(version)
        if not follow:
            return len(written)
        await asyncio.sleep(FOLLOW_S)


def figures_of(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A version's figures by name: devices' means, the server's own, and the counters."""
    yield from record["metrics"].items()
    yield from ((f"server/{name}", value) for name, value in record["server"].items())
    yield "fleet/updates_folded", float(record["updates_folded"])
    yield "fleet/devices_reporting", float(record["devices"])


def _writer(task: TaskName, epoch: int, tensorboard: Path | None, mlflow: str | None) -> Writer:
    try:
        if tensorboard is not None:
            return _TensorBoard(tensorboard / f"{task}-epoch-{epoch}")
        return _Mlflow(task, epoch, mlflow or "")
    except ImportError as exc:
        extra = "tensorboard" if tensorboard is not None else "mlflow"
        raise ConfigError(extra, f"is not installed: pip install 'fedmq[{extra}]'") from exc


class _TensorBoard:
    """Event files, through tensorboardX."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter  # noqa: PLC0415 - an extra

        try:
            self._writer: Any = SummaryWriter(str(folder))
        except OSError as exc:
            raise ConfigError("tensorboard", f"{folder} cannot be written: {exc}") from exc

    def write(self, version: int, at_ms: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, version, walltime=at_ms / 1000)

    def close(self) -> None:
        self._writer.close()


class _Mlflow:
    """A tracking server: one experiment a task, one run an epoch."""

    def __init__(self, task: TaskName, epoch: int, uri: str) -> None:
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 - an extra
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            name = f"fedmq/{task}"
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            self._run = self._client.create_run(experiment, run_name=f"epoch {epoch}").info.run_id
        except MlflowException as exc:
            msg = f"mlflow at {uri}: {str(exc).splitlines()[0]}"
            raise FedmqError(msg) from exc

    def write(self, version: int, at_ms: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._client.log_metric(self._run, name, value, timestamp=at_ms, step=version)

    def close(self) -> None:
        self._client.set_terminated(self._run, end_time=round(time.time() * 1000))
