"""`fedmq model`: get the global model out."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from aggregator.tasks import PublishedModel, published_model, task_spec
from fedmq.commands.running import Config, RedisUrl, redis_for
from schemas.errors import ConfigError
from schemas.names import TaskName, task_name
from schemas.params import unflatten
from schemas.task import TaskSpec

app = typer.Typer(help="Get the global model out.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Keep `pull` a sub-command while it is the only one."""


@app.command("pull")
def pull(
    name: Annotated[str, typer.Argument(help="The task's name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.")],
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Write the newest published model as an .npz of named float32 arrays.

    Example: fedmq model pull pumps -o model.npz
    """
    task = task_name(name)
    model, spec = asyncio.run(_load(task, config, redis_url))
    tensors: dict[str, Any] = dict(unflatten(spec.params, model.params))
    try:
        with output.open("wb") as file:
            np.savez(file, **tensors)
    except OSError as exc:
        raise ConfigError("output", f"cannot be written: {exc}") from exc
    manifest = model.manifest
    digest = manifest.model_digest.hex()[:16]
    typer.echo(f"{output}: {task} version {manifest.version}, digest {digest}")


async def _load(
    task: TaskName, config: Path | None, redis_url: str | None
) -> tuple[PublishedModel, TaskSpec]:
    async with redis_for(config, redis_url) as redis:
        model, spec = await published_model(redis, task), await task_spec(redis, task)
    if model is None or spec is None:
        raise ConfigError("task", f"{task!r} has published no model; is the aggregator running?")
    return model, spec
