"""What people decide is an entry in the log: write it, wait for its effect, say what happened."""

import sys
from collections.abc import Sequence
from typing import Final

import typer
from redis.asyncio import Redis
from rich.console import Console

from aggregator.tasks import append_entry, folded_until, last_commit
from schemas.log import Body, EntryId
from schemas.names import TaskName

PATIENCE_S = 5.0
"""How long a command waits for the aggregator."""


async def decide(redis: Redis, task: TaskName, body: Body, said: str) -> EntryId | None:
    """Write an entry and wait until it holds; its id, or None while nobody folds.

    Raises ConfigError: there is no such task.
    """
    entry = await append_entry(redis, task, body)
    with Console(stderr=True).status(f"waiting for the aggregator of {task}"):
        folded = await folded_until(redis, task, entry, patience_s=PATIENCE_S)
    if folded:
        version = (await last_commit(redis, task)).version
        typer.echo(f"{task}: {said} (log position {entry}, version {version})")
        return entry
    typer.echo(
        f"{task}: {said}, as soon as an aggregator folds log position {entry}; none does just now"
    )
    return None


_PIPED: Final = 1000
"""Columns of what is no terminal: nothing is cut off there."""


def sure(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone; `--yes` has answered already."""
    if not yes:
        typer.confirm(question, abort=True)


def columns(rows: Sequence[Sequence[object]], names: Sequence[str]) -> None:
    """Print a plain table: text to the left, numbers to the right."""
    from rich.table import Table  # noqa: PLC0415 - a JSON answer need not load it

    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(names):
        numeric = bool(rows) and all(isinstance(row[number], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else _PIPED).print(table)
