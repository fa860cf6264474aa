"""`fedmq task`: from a task's birth to its end."""

import asyncio
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from aggregator.tasks import all_tasks, create_task, fresh_epoch, task_spec, task_status
from edge_agent.trainers.sgd import descent_of
from fedmq.bundle_folder import packed, read_folder, read_npz
from fedmq.commands import task_files, task_life
from fedmq.commands.deciding import columns
from fedmq.commands.running import Config, RedisUrl, redis_for
from schemas.bundle import BundleManifest
from schemas.errors import ConfigError
from schemas.initial import initial_params
from schemas.names import TaskName, task_name
from schemas.params import Params, ParamSpec, flatten, spec_of
from schemas.task import TaskFile, TaskSpec, TrainOptions, read_task_file, spec_to_json

app = typer.Typer(
    help="Create a task, look at it, change it, pause it, move it, end it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(help="The task's name: a-z, 0-9, _ and -.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]

_PLAIN: Final = TaskFile(train=TrainOptions(batch_size=32, learning_rate=0.05))
"""How a bundle is trained where nobody says more."""


@app.command("create")
def create(
    name: Name,
    spec: Annotated[Path | None, typer.Option(help="What to train and how: a task.toml.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="The initial model: an .npz of named arrays.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="What `fedmq model import` has written: model and graphs.")
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(help="Only after a loss of Redis within four hours: a higher one.")
    ] = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Create a task: its specification and initial model become the first entries of its log.

    Without --init the file names the tensors ([[params.tensors]] with name and shape) and the
    initial model is drawn as its table [init] says. With --init the file may give kinds to the
    tensors (trained, buffer, frozen, local) under the same names and shapes.

    With --bundle devices are given an ONNX model and train it with nothing but their data. Tensors,
    kinds and initial model are the bundle's; without --spec batches are of 32 examples and the
    learning rate is 0.05.

    Example: fedmq task create pumps --spec task.toml --init model.npz
    """
    task = task_name(name)
    if bundle is not None:
        complete, params, data = _with_bundle(bundle, spec, init)
    elif spec is None:
        raise ConfigError("spec", "is missing: give a task.toml, or --bundle FOLDER")
    else:
        file, data = _read_spec(spec), None
        param_spec, params = _initial(file, init)
        complete = file.spec(param_spec, drawn=init is None)

    async def act() -> int:
        async with redis_for(config, redis_url) as redis:
            known = await fresh_epoch(redis, task, time.time())
            number = known if epoch is None else epoch
            await create_task(redis, task, complete, params, epoch=number, bundle=data)
            return number

    number = asyncio.run(act())
    beside = "" if data is None else f", a bundle of {len(data):,} bytes"
    typer.echo(f"created task {task}: {params.size:,} parameters{beside}, epoch {number}")


@app.command("list")
def list_tasks(as_json: Json = False, config: Config = None, redis_url: RedisUrl = None) -> None:
    """List all tasks: phase, version, devices, updates.

    Example: fedmq task list --json
    """

    async def look() -> list[dict[str, object]]:
        async with redis_for(config, redis_url) as redis:
            found = [await task_status(redis, task) for task in await all_tasks(redis)]
        return [status for status in found if status is not None]

    statuses = asyncio.run(look())
    if as_json:
        typer.echo(json.dumps(statuses))
        return
    if not statuses:
        typer.echo("there is no task; make one with: fedmq task create NAME --spec task.toml")
        return
    names = ("task", "phase", "version", "published", "devices", "updates_folded", "updates_stored")
    rows = [[status.get(name, "") for name in names] for status in statuses]
    columns(rows, [name.replace("_", " ") for name in names])


@app.command("show")
def show(
    name: Name,
    as_json: Json = False,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Show where a task stands: version, updates folded and refused, what waits in the log."""
    task = task_name(name)
    status, spec = asyncio.run(_status(task, config, redis_url))
    if as_json:
        typer.echo(json.dumps(status | {"spec": spec}))
        return
    table = Table(title=f"task {task}", show_header=False)
    for key, value in status.items():
        if key == "at_ms" and isinstance(value, int):
            table.add_row("as of", f"{datetime.fromtimestamp(value / 1000, UTC):%F %T} UTC")
        elif key != "task":
            table.add_row(key.replace("_", " "), _plain(value))
    Console().print(table)


async def _status(
    task: TaskName, config: Path | None, redis_url: str | None
) -> tuple[dict[str, object], object]:
    async with redis_for(config, redis_url) as redis:
        status = await task_status(redis, task)
        if status is None:
            raise ConfigError("task", f"{task!r} does not exist; create it first")
        spec = await task_spec(redis, task)
    return status, None if spec is None else json.loads(spec_to_json(spec))


def _plain(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items()) or "none"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _read_spec(path: Path) -> TaskFile:
    try:
        return read_task_file(path.read_text())
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("spec", f"cannot be read: {exc}") from exc


def _with_bundle(
    folder: Path, spec: Path | None, init: Path | None
) -> tuple[TaskSpec, Params, bytes]:
    """What a bundle makes of a task: its specification, its initial model, and itself."""
    if init is not None:
        raise ConfigError("init", "goes without: the bundle has its own initial model (theta0.npz)")
    file = _PLAIN if spec is None else _read_spec(spec)
    bundle, theta0 = read_folder(folder)
    params = bundle.manifest.params
    if file.params not in {None, params}:
        raise ConfigError("params", "are the bundle's: leave [[params.tensors]] out")
    _check_trained(file, bundle.manifest)
    return file.spec(params), flatten(params, theta0), packed(bundle)


def _check_trained(file: TaskFile, manifest: BundleManifest) -> None:
    """What every device would refuse. Raises ConfigError."""
    given, wanted = file.input, manifest.x.size
    try:
        descent_of(file.train)
    except ValueError as exc:
        field, _, remedy = str(exc).partition(" ")
        raise ConfigError(field, remedy) from exc
    count = len(given.features) * given.window
    if given.features and count != wanted:
        told = f"are {len(given.features)}, in windows of {given.window}: {count} numbers"
        raise ConfigError("input.features", f"{told} a sample, but the model takes {wanted}")
    if not given.features and wanted > 1:
        typer.echo(
            "note: [input] features names no columns: every device takes its own in their order",
            err=True,
        )


def _initial(file: TaskFile, init: Path | None) -> tuple[ParamSpec, Params]:
    if init is not None:
        tensors = read_npz(init, "init")
        spec = spec_of(tensors)
        if file.params is None:
            return spec, flatten(spec, tensors)
        if _shapes(file.params) != _shapes(spec):
            raise ConfigError("params", f"differs from the tensors of {init}; drop one of them")
        return file.params, flatten(file.params, tensors)
    if file.params is None:
        raise ConfigError("params", "is missing: name the tensors or give --init model.npz")
    # the shell makes the generator that the core is given
    rng = np.random.default_rng(file.init.seed)  # noqa: TID251
    return file.params, initial_params(file.params, file.init, rng)


def _shapes(spec: ParamSpec) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tensor.shape for tensor in spec.tensors}


app.command("update")(task_life.update)
app.command("pause")(task_life.pause)
app.command("resume")(task_life.resume)
app.command("finish")(task_life.finish)
app.command("clone")(task_life.clone)
app.command("delete")(task_life.delete)
app.command("export")(task_files.export)
app.command("import")(task_files.bring_back)
