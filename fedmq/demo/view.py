"""What the demo shows while it runs: one small table."""

from collections.abc import Mapping

from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table


def panel(facts: Mapping[str, str], *, accuracy: float, target: float) -> RenderableType:
    """The table of facts under a bar towards the target."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="cyan")
    table.add_column(min_width=40)
    for name, value in facts.items():
        table.add_row(name, value)
    table.add_row("to target", ProgressBar(total=target, completed=min(accuracy, target), width=40))
    return Panel(table, title="fedmq demo", subtitle="Ctrl-C stops", expand=False)
