"""`fedmq task update | pause | resume | finish | clone | delete`."""

import asyncio
import time
from pathlib import Path
from typing import Annotated

import typer

from aggregator.bundles import bundle_bytes
from aggregator.tasks import (
    create_task,
    delete_task,
    fresh_epoch,
    kept_model,
    last_commit,
    no_such,
    published_model,
    task_spec,
)
from fedmq.commands.deciding import decide, sure
from fedmq.commands.running import Config, RedisUrl, redis_for
from schemas.changes import changed_spec, differences, replaced_spec
from schemas.errors import ConfigError
from schemas.log import PhaseSet, SpecSet
from schemas.names import task_name
from schemas.task import Phase, TaskSpec, read_task_file, spec_to_json

Name = Annotated[str, typer.Argument(help="The task's name.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def update(
    name: Name,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="TABLE.FIELD=VALUE, as often as needed."),
    ] = None,
    spec: Annotated[
        Path | None, typer.Option(help="Or a whole task.toml, for the same tensors.")
    ] = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Change how a task is trained; it takes effect at one position of the log.

    What waits in a FedBuff buffer is folded first. Updates that were made under the old
    specification are still taken, their codec's too. Tensors never change.

    Example: fedmq task update pumps --set train.epochs=3 --set strategy.buffer_size=20
    """
    task = task_name(name)
    if not assignments and spec is None:
        raise ConfigError("set", "nothing to change: give --set TABLE.FIELD=VALUE or --spec FILE")
    if assignments and spec is not None:
        raise ConfigError("set", "give --set or --spec, not both")

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            old = await task_spec(redis, task)
            if old is None:
                raise no_such(task)
            new = _from_file(old, spec) if spec else changed_spec(old, assignments or ())
            changed = differences(old, new)
            if not changed:
                typer.echo(f"{task}: nothing differs, nothing was written")
                return
            said = ", ".join(f"{field} {before} -> {after}" for field, before, after in changed)
            await decide(redis, task, SpecSet(spec_to_json(new)), said)

    asyncio.run(act())


def _from_file(old: TaskSpec, path: Path) -> TaskSpec:
    try:
        return replaced_spec(old, read_task_file(path.read_text()))
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError("spec", f"cannot be read: {exc}") from exc


def pause(name: Name, config: Config = None, redis_url: RedisUrl = None) -> None:
    """Let the fleet rest: no device begins to train; what was trained is still folded.

    Example: fedmq task pause pumps
    """
    _enter(name, "paused", config, redis_url)


def resume(name: Name, config: Config = None, redis_url: RedisUrl = None) -> None:
    """Go on with a task that was paused or finished.

    A task that finished by a condition of [finish] finishes again at once, unless that was changed
    before: fedmq task update NAME --set finish.versions=0

    Example: fedmq task resume pumps
    """
    _enter(name, "running", config, redis_url)


def finish(name: Name, config: Config = None, redis_url: RedisUrl = None) -> None:
    """End a task: its last model stays published, updates that still come are refused.

    Conditions in the table [finish] do the same by themselves.

    Example: fedmq task finish pumps
    """
    _enter(name, "finished", config, redis_url)


def _enter(name: str, phase: Phase, config: Path | None, redis_url: str | None) -> None:
    task = task_name(name)

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            if await decide(redis, task, PhaseSet(phase), phase) is None:
                return
            now = (await last_commit(redis, task)).phase
            if now != phase:
                why = "what [finish] names is reached: raise it first (fedmq task update)"
                raise ConfigError("phase", f"{task} is {now} again at once; {why}")

    asyncio.run(act())


def clone(
    name: Name,
    new: Annotated[str, typer.Argument(help="The new task's name.")],
    version: Annotated[
        int | None, typer.Option(help="Begin with this kept version. [default: the newest]")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="TABLE.FIELD=VALUE, changed in the clone.")
    ] = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Begin a new task with the specification and a published model of another.

    Example: fedmq task clone pumps pumps-south --set train.learning_rate=0.02
    """
    task, other = task_name(name), task_name(new)

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            spec = await task_spec(redis, task)
            if spec is None:
                raise no_such(task)
            spec = changed_spec(spec, assignments or ())
            if version is None:
                model = await published_model(redis, task)
            else:
                model = await kept_model(redis, task, version)
            if model is None:
                raise ConfigError("task", f"{task!r} has published no model yet")
            epoch = await fresh_epoch(redis, other, time.time())
            bundle = None if spec.bundle is None else await bundle_bytes(redis, task, spec.bundle)
            await create_task(redis, other, spec, model.params, epoch=epoch, bundle=bundle)
            number = model.manifest.version
            typer.echo(f"created task {other} from version {number} of {task}, epoch {epoch}")

    asyncio.run(act())


def delete(name: Name, yes: Yes = False, config: Config = None, redis_url: RedisUrl = None) -> None:
    """Delete a task for ever: its log, models and records; a bridge clears its topics.

    Only its last epoch is remembered, so that a new task of this name is never mistaken for it.

    Example: fedmq task export pumps -o pumps.fedmq && fedmq task delete pumps
    """
    task = task_name(name)
    sure(f"Delete task {task} with everything that was learnt? This cannot be undone.", yes=yes)

    async def act() -> None:
        async with redis_for(config, redis_url) as redis:
            await delete_task(redis, task)

    asyncio.run(act())
    typer.echo(f"deleted task {task}; the bridge clears its retained topics")
