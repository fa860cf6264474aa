"""`fedmq health`: for a container's health check: is every task carried and folded?"""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from aggregator.tasks import all_tasks
from fedmq.commands.running import Config, RedisUrl, redis_for
from schemas.errors import FedmqError
from schemas.keys import TaskKeys
from schemas.names import TaskName


def health(
    role: Annotated[str, typer.Argument(help="bridge or aggregator.")],
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Exit with 0 when some bridge (or aggregator) holds the lease on every task, else with 1.

    A lease is renewed every second or so and ends by itself when its process does.

    Example: fedmq health bridge
    """
    match role:
        case "bridge" | "aggregator":
            idle = asyncio.run(_idle(role, config, redis_url))
        case _:
            raise typer.BadParameter("must be bridge or aggregator", param_hint="ROLE")
    if idle:
        msg = f"no {role} holds {', '.join(idle)}"
        raise FedmqError(msg)
    typer.echo("ok")


async def _idle(
    role: Literal["bridge", "aggregator"], config: Path | None, redis_url: str | None
) -> list[TaskName]:
    """Tasks that nobody of this role holds."""
    async with redis_for(config, redis_url) as redis:
        tasks = await all_tasks(redis)
        keys = [TaskKeys(task) for task in tasks]
        leases = [each.downlink if role == "bridge" else each.holder for each in keys]
        held: Any = await redis.mget(leases) if leases else []
    return [task for task, token in zip(tasks, held, strict=True) if token is None]
