"""`fedmq model`: look at versions, get one out, go back, hold a group, try it on a few first."""

import asyncio
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from redis.asyncio import Redis

from aggregator.checkpoint import vector_to_bytes
from aggregator.tasks import (
    PublishedModel,
    commit_if_any,
    kept_model,
    last_commit,
    no_such,
    published_model,
    task_spec,
    version_records,
)
from fedmq.commands import importing, pulling
from fedmq.commands.deciding import columns, decide, sure
from fedmq.commands.running import Config, RedisUrl, redis_for
from fedmq.commands.version_table import as_table, for_people
from schemas.changes import changed_spec
from schemas.compare import tensor_diffs
from schemas.errors import ConfigError
from schemas.log import ModelSet, PinSet, ReleaseSet, SpecSet
from schemas.names import TaskName, is_name, task_name
from schemas.task import TaskSpec, spec_to_json

app = typer.Typer(
    help="The global model: import one; list, pull, compare, roll back, pin versions; canary.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
Name = Annotated[str, typer.Argument(help="The task's name.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]
app.command("import")(importing.import_model)


class Form(StrEnum):
    """What `pull` writes."""

    NPZ = "npz"
    ONNX = "onnx"


Version = Annotated[int, typer.Argument(min=0, help="A version whose parameters are kept.")]


@app.command("list")
def list_versions(
    name: Name,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, a column for every metric.")] = False,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """List the versions that were published or proposed, and how good they were found.

    Metrics of devices are means over their held-out examples, told when enough devices
    ([evaluate] min_devices) have reported; `server:` ones are the server's own.

    Example: fedmq model list pumps --csv > versions.csv
    """
    task = task_name(name)

    async def look() -> tuple[list[dict[str, Any]], set[int]]:
        async with redis_for(config, redis_url) as redis:
            last = await commit_if_any(redis, task)
            if last is None:
                typer.echo("no version yet; is the aggregator running?", err=True)
                return [], set()
            kept = {release.version for release in last.releases}
            return await version_records(redis, task), kept

    records, kept = asyncio.run(look())
    for record in records:
        record["kept"] = record["version"] in kept
    if as_json:
        typer.echo(json.dumps(records))
    elif as_csv:
        header, rows = as_table(records)
        csv.writer(sys.stdout).writerows([header, *rows])
    else:
        header, rows = for_people(records[-30:])
        columns(rows, header)
        if len(records) > len(rows):
            typer.echo(f"... the newest {len(rows)} of {len(records)}; --csv and --json give all")


@app.command("pull")
def pull(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    version: Annotated[
        int | None, typer.Option(help="A kept version. [default: the newest published]")
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="npz or onnx. [default: as the file is named]")
    ] = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Write a published model: an .npz of named float32 arrays, or a plain ONNX file.

    The ONNX file is the author's inference graph with the fleet's parameters; any runtime loads it.
    It needs a task with a bundle (fedmq model import). Its metadata tell task, version, digest and
    the task's [input]: what the model was fed is scaled as that says.

    Example: fedmq model pull pumps -o model.onnx
    """
    task = task_name(name)
    if form is None:
        form = Form.ONNX if output.suffix.lower() == ".onnx" else Form.NPZ

    async def act() -> tuple[PublishedModel, TaskSpec, bytes]:
        async with redis_for(config, redis_url) as redis:
            (model,), spec = await _load(redis, task, [version])
            if form is Form.ONNX:
                return model, spec, await pulling.onnx(redis, task, spec, model)
            return model, spec, pulling.npz(spec, model.params)

    model, spec, data = asyncio.run(act())
    try:
        output.write_bytes(data)
    except OSError as exc:
        raise ConfigError("output", f"cannot be written: {exc}") from exc
    manifest = model.manifest
    digest = manifest.model_digest.hex()[:16]
    typer.echo(f"{output}: {task} version {manifest.version}, digest {digest}")
    if form is Form.ONNX and (note := pulling.scale_note(spec)):
        typer.echo(f"note: {note}", err=True)


@app.command("diff")
def diff(
    name: Name,
    old: Version,
    new: Annotated[
        int | None, typer.Argument(min=0, help="Another one. [default: the newest published]")
    ] = None,
    as_json: Json = False,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Compare two kept versions, tensor by tensor: how far, how much, how many elements.

    Example: fedmq model diff pumps 40 57
    """
    task = task_name(name)

    async def act() -> tuple[list[PublishedModel], TaskSpec]:
        async with redis_for(config, redis_url) as redis:
            return await _load(redis, task, [old, new])

    (a, b), spec = asyncio.run(act())
    diffs = tensor_diffs(spec.params, a.params, b.params)
    numbers = a.manifest.version, b.manifest.version
    if as_json:
        tensors = [asdict(each) for each in diffs]
        typer.echo(
            json.dumps({"task": task, "from": numbers[0], "to": numbers[1], "tensors": tensors})
        )
        return
    typer.echo(f"{task}: version {numbers[0]} -> {numbers[1]}")
    rows = [
        [d.name, d.size, d.changed, f"{d.distance:.4g}", f"{d.relative:.2%}", f"{d.largest:.4g}"]
        for d in diffs
    ]
    columns(rows, ["tensor", "size", "changed", "distance", "relative", "largest"])


async def _load(
    redis: Redis, task: TaskName, versions: Sequence[int | None]
) -> tuple[list[PublishedModel], TaskSpec]:
    models: list[PublishedModel] = []
    spec = await task_spec(redis, task)
    if spec is None:
        raise no_such(task)
    for version in versions:
        if version is None:
            model = await published_model(redis, task)
        else:
            model = await kept_model(redis, task, version)
        if model is None:
            remedy = f"{task!r} has published no model; is the aggregator running?"
            raise ConfigError("task", remedy)
        models.append(model)
    return models, spec


@app.command("rollback")
def rollback(
    name: Name,
    version: Version,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Go back: a new version with the parameters of a kept one is published to everybody.

    Versions in between are withdrawn: updates that were made on them are refused, and what waits
    in the buffer is dropped. The log keeps all of it.

    Example: fedmq model rollback pumps 50
    """
    task = task_name(name)
    sure(f"Roll {task} back to version {version}? What was learnt since is dropped.", yes=yes)

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            model = await kept_model(redis, task, version)
            entry = ModelSet(vector_to_bytes(model.params), version)
            await decide(redis, task, entry, f"rolled back to version {version}")

    asyncio.run(act())


@app.command("pin")
def pin(
    name: Name,
    group: Annotated[str, typer.Argument(help="A tag (fedmq device tag), or one device's name.")],
    version: Annotated[
        int | None, typer.Argument(min=0, help="The kept version to hold them at.")
    ] = None,
    release: Annotated[bool, typer.Option(help="Let them go again.")] = False,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Hold a group of devices at one version, or let them go.

    Example: fedmq model pin pumps plant-north 50
    """
    task = task_name(name)
    if release == (version is not None):
        raise ConfigError("version", "give the version to hold them at, or --release")
    if not is_name(group):
        raise ConfigError("group", f"{group!r} is no tag and no device: a-z, 0-9, _ and -")

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            if version is not None:
                await kept_model(redis, task, version)
                await _refuse_unpublished(redis, task, version)
            said = f"{group} let go" if version is None else f"{group} held at version {version}"
            await decide(redis, task, PinSet(group, version), said)

    asyncio.run(act())


async def _refuse_unpublished(redis: Any, task: TaskName, version: int) -> None:
    releases = (await last_commit(redis, task)).releases
    status = next((r.status for r in releases if r.version == version), "gone")
    if status != "published":
        raise ConfigError("version", f"{version} is {status}; only a published one can be pinned")


@app.command("canary")
def canary(
    name: Name,
    share: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="This share of the fleet gets new versions first."),
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Everybody gets the one that waits, now.")
    ] = False,
    hold: Annotated[bool, typer.Option("--hold", help="Nobody else gets it.")] = False,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Give new versions to a share of the fleet first; decide about the one that waits.

    Which devices belong to the share follows from their names alone. A version waits until the
    metric of [gate] has decided, or gate.patience_s is over. --share 0 ends it.

    Example: fedmq model canary pumps --share 0.1
    """
    task = task_name(name)
    if (share is not None) + promote + hold != 1:
        raise ConfigError("share", "give one of --share, --promote and --hold")

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            if share is not None:
                spec = await task_spec(redis, task)
                if spec is None:
                    raise no_such(task)
                entry = SpecSet(spec_to_json(changed_spec(spec, [f"gate.canary={share}"])))
                whom = f"{share:.1%} of the fleet" if share else "everybody at once"
                await decide(redis, task, entry, f"new versions go to {whom}")
                return
            waiting = (await last_commit(redis, task)).candidate
            if waiting is None:
                raise ConfigError("version", f"no version of {task!r} waits just now")
            said = f"version {waiting} {'is for everybody' if promote else 'is held back'}"
            await decide(redis, task, ReleaseSet(waiting, publish=promote), said)

    asyncio.run(act())
