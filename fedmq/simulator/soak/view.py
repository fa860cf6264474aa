"""What a soak shows while it runs: one table."""

from rich.console import RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from fedmq.simulator.soak.run import Sight


def panel(sight: Sight) -> RenderableType:
    """Time, faults, and how the fleet does under them."""
    progress, status = sight.progress, sight.status
    plan = progress.plan
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="cyan")
    table.add_column(min_width=56)
    done = min(progress.elapsed_s, plan.seconds)
    table.add_row("phase", sight.phase)
    table.add_row("time", ProgressBar(total=plan.seconds, completed=done, width=40))
    table.add_row("", f"{done:.0f} of {plan.seconds:.0f} s")
    table.add_row("faults", f"{progress.faults} (left out: {sum(progress.left_out.values())})")
    table.add_row("now", sight.fault or "-")
    for number, each in enumerate(reversed(sight.recent)):
        table.add_row("before" if not number else "", each, style="dim")
    table.add_row("version", f"{status.get('version', '-')}")
    table.add_row("updates folded", f"{status.get('updates_folded', 0)}")
    rejected = status.get("updates_rejected", {})
    refused = ", ".join(f"{name} {count}" for name, count in rejected.items())
    table.add_row("refused", refused or "-")
    table.add_row("came twice", f"{status.get('duplicates_dropped', 0)}")
    table.add_row("open on devices", f"{sight.open}")
    table.add_row("staleness", f"{status.get('staleness_mean', 0.0):.1f} on average")
    table.add_row(
        "busy", f"{status.get('busy') or '-'}, {status.get('busy_times', 0)} times so far"
    )
    if progress.deaths:
        dead = ", ".join(f"{name} {count}" for name, count in progress.deaths.items())
        table.add_row("ended by themselves", dead)
    return Panel(
        table, title=f"fedmq soak, seed {plan.seed}", subtitle="Ctrl-C stops", expand=False
    )
