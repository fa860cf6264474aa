"""Runs side by side: what each spent to the target, and what it came to. Pure.

Refuses nothing: a run that never reached the target says `never`.
"""

from collections.abc import Sequence
from typing import Final

from fedmq.simulator.virtual.outcome import Outcome, final
from fedmq.simulator.virtual.report import amount, duration, figure_of, value_of

HEAD: Final = ("uploads", "up", "down", "virtual time", "joules")
"""What is told of the way to the target."""


def columns(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The heads of the table. Without a target the run's end is told."""
    figure = figure_of(outcomes[0])
    return ("fleet", *HEAD, f"final {figure}", "version", "staleness", "top tenth")


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """One row a run, in their order, as long as `columns`."""
    figure = figure_of(outcomes[0])
    return [_row(outcome, figure) for outcome in outcomes]


def title(outcomes: Sequence[Outcome]) -> str:
    """What the table tells of."""
    for figure, value in outcomes[0].target.items():
        return f"spent to {figure} {value_of(figure, value)}"
    return "spent to the end of the run"


def side_by_side(outcomes: Sequence[Outcome]) -> str:
    """The table in plain text, a column a run, which fits a terminal."""
    table = list(zip(columns(outcomes), *rows(outcomes), strict=True))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join([head.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        for head, *cells in table
    ]
    return "\n".join([f"{title(outcomes)}:", *lines])


def _row(outcome: Outcome, figure: str) -> tuple[str, ...]:
    at = outcome.reached if outcome.target else outcome.samples[-1]
    spent = ("never",) * len(HEAD)
    if at is not None:
        spent = (
            f"{at.uploads:,}",
            amount(at.bytes_up),
            amount(at.bytes_down),
            duration(at.virtual_s),
            f"{at.joules:,.0f}",
        )
    return (
        outcome.name,
        *spent,
        value_of(figure, final(outcome, figure)),
        f"{outcome.version}",
        f"{outcome.staleness_mean:.1f}",
        f"{outcome.participation.top_tenth:.0%}",
    )
