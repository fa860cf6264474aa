"""`fedmq demo`: the whole system on this machine, with nothing installed but the package."""

import asyncio
import json
import logging
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from fedmq.commands.running import until_told
from fedmq.demo.run import Plan, Progress, run
from fedmq.demo.summary import Summary, in_words
from fedmq.demo.view import panel
from schemas.errors import ConfigError


def demo(
    seed: Annotated[
        int,
        typer.Option(min=0, help="Of data, weather and training; who comes first is chance."),
    ] = 0,
    devices: Annotated[int, typer.Option(min=1, max=150, help="How many devices.")] = 20,
    quick: Annotated[bool, typer.Option(help="A lower target (85 %) and 60 s at most.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print only summary.json.")] = False,
    output: Annotated[Path, typer.Option(help="Where the run's folder is made.")] = Path("runs"),
) -> None:
    """Watch a fleet on bad links learn to read handwritten digits.

    Starts the lab broker, an embedded Valkey, the bridge, the aggregator and the devices, all on
    loopback. Every device keeps its own digits and sends small, staleness-tagged deltas whenever
    its link lets it. Ends at 93 % held-out accuracy, after 120 s at the latest; then waits until
    every update has its Receipt and counts. Exit code 1 when the target was missed or an update
    was lost. Files: runs/<time>/summary.json, events.jsonl, curve.png and the servers' logs.
    """
    plan = Plan(devices, 0.85, 60.0, seed) if quick else Plan(devices=devices, seed=seed)
    folder = output / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")
    try:
        folder.mkdir(parents=True)
    except OSError as exc:
        raise ConfigError("output", f"{folder} cannot be made: {exc.strerror}") from exc
    logging.getLogger("fedmq").setLevel(logging.ERROR)  # bad links are what the demo is about
    told: list[signal.Signals] = []
    try:
        summary = asyncio.run(until_told(_watched(plan, folder), told))
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo(f"stopped; what there is lies in {folder}/", err=True)
        sys.exit(128 + (told or [signal.SIGINT])[0])
    if as_json:
        typer.echo(json.dumps(summary.as_dict()))
    else:
        typer.echo(in_words(summary))
        typer.echo(f"Files: {folder}/ (curve.png, summary.json, events.jsonl, logs)")
    sys.exit(0 if summary.reached else 1)


async def _watched(plan: Plan, folder: Path) -> Summary:
    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=8, transient=True) as live:

        def watch(progress: Progress) -> None:
            facts = _facts(progress, plan)
            live.update(panel(facts, accuracy=progress.accuracy, target=plan.target))

        return await run(plan, folder, watch)


def _facts(progress: Progress, plan: Plan) -> dict[str, str]:
    status = progress.status
    mean, worst = status.get("staleness_mean", 0.0), status.get("staleness_max", 0)
    return {
        "phase": f"{progress.phase}, {progress.seconds:.0f} of at most {plan.longest_s:.0f} s",
        "version": str(progress.version),
        "held-out accuracy": f"{progress.accuracy:.1%}",
        "updates folded": str(status.get("updates_folded", 0)),
        "came twice": str(status.get("duplicates_dropped", 0)),
        "staleness": f"mean {mean:.1f}, worst {worst}",
        "sent up / down": f"{progress.bytes_up / 1e3:.0f} / {progress.bytes_down / 1e3:.0f} kB",
        "devices online": f"{progress.online} of {plan.devices}",
    }
