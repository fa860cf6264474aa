"""`fedmq simulate`: a fleet of up to ten million devices, in virtual time, in this process."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from schemas.errors import ConfigError

QUICK = 400
SCALE = 1500
"""Uploads."""


def simulate(
    fleets: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FLEET.toml]...", help="A fleet file; none: the built-in fleet."),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, max=10_000_000, help="Instead of the file's number.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=1 << 53, help="Instead of the file's.")
    ] = None,
    uploads: Annotated[
        int | None, typer.Option(min=1, help="End after so many, and at no target.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"At most {QUICK} uploads, and no target.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run several files, side by side.")
    ] = False,
    plots: Annotated[
        Path | None, typer.Option(help="A folder for pictures (needs matplotlib).")
    ] = None,
    scale: Annotated[
        bool, typer.Option("--scale", help="What an event costs from 10^3 to 10^6 devices.")
    ] = False,
    example: Annotated[
        bool, typer.Option("--example", help="Print the built-in fleet's file, commented.")
    ] = False,
) -> None:
    """Simulate a fleet in virtual time: the real fold, the real codecs, simulated devices.

    A fleet file says what devices know, how fast they are, on which links, when they can be had,
    who cheats, and when it ends. Hours of a fleet take seconds. One seed has one result.

    A first run, nothing to write:

        fedmq simulate

    Your own fleet: take the built-in one's file and change it.

        fedmq simulate --example > fleet.toml

        fedmq simulate fleet.toml --plots plots/

    Another size, for a script:

        fedmq simulate fleet.toml --devices 100000 --seed 5 --quick --json

    Which of two is better? Both are run to the first one's target.

        fedmq simulate --compare async.toml sync.toml --plots plots/

    Exit code 1: there is a target, and it was missed (in a comparison: by any), or --scale found
    that an event costs more than 1.5 times as much in a fleet a thousand times as large. 2: the
    file cannot work. 130: Ctrl-C; what was reached is told.
    """
    files = fleets or []
    if example:
        from fedmq.simulator.virtual.presets import PRESET  # noqa: PLC0415 - as below

        typer.echo(PRESET, nl=False)
        return
    _check(files, compare=compare, scale=scale, plots=plots, devices=devices)
    most = QUICK if quick else None
    if scale:
        _scale(files, seed, min(uploads or SCALE, most or uploads or SCALE), as_json=as_json)
        return
    _run(files, (devices, seed, uploads, most), plots, as_json=as_json)


def _run(
    files: list[Path],
    changes: tuple[int | None, int | None, int | None, int | None],
    plots: Path | None,
    *,
    as_json: bool,
) -> None:
    """Simulate, tell, and end with the exit code that the help promises."""
    stopped = "stopped before the fleet had begun"
    try:
        # The engine takes a second to import, and `fedmq --help` must not
        from fedmq.commands import simulating  # noqa: PLC0415
        from fedmq.simulator.virtual import plots as pictures  # noqa: PLC0415
        from fedmq.simulator.virtual.report import kept  # noqa: PLC0415

        if plots is not None:
            pictures.refuse_without_matplotlib()
        sofar = simulating.Sofar()
        try:
            chosen = simulating.fleets_of(files, simulating.Changes(*changes))
            if plots is not None:
                pictures.refuse_folder(plots)
            outcomes = simulating.simulated(chosen, sofar)
            simulating.tell(outcomes, plots, as_json=as_json)
        except KeyboardInterrupt:
            stopped = simulating.told(sofar)
            raise
    except KeyboardInterrupt:
        typer.echo(stopped, err=True)
        sys.exit(130)
    if not all(kept(outcome) for outcome in outcomes):
        raise typer.Exit(1)


def _check(
    files: list[Path], *, compare: bool, scale: bool, plots: Path | None, devices: int | None
) -> None:
    if compare and scale:
        raise ConfigError("scale", "measures one fleet: leave --compare out")
    if compare and len(files) < 2:
        raise ConfigError("compare", "needs two fleet files or more")
    if len(files) > 1 and not compare:
        raise ConfigError("FLEET.toml", "only one is simulated: add --compare for several")
    if scale and devices is not None:
        raise ConfigError("devices", "are a thousand to a million with --scale: leave it out")
    if scale and plots is not None:
        raise ConfigError("plots", "there are none of --scale: leave it out")
    if plots is not None and plots.exists() and not plots.is_dir():
        raise ConfigError("plots", f"{plots} is no folder")


def _scale(files: list[Path], seed: int | None, uploads: int, *, as_json: bool) -> None:
    from fedmq.simulator.virtual import scaling  # noqa: PLC0415 - as above

    arguments = [*map(str, files), "--uploads", str(uploads)]
    arguments += [] if seed is None else ["--seed", str(seed)]
    runs = scaling.REPEATS * len(scaling.SIZES)
    done = 0

    def watch(number: int, size: int) -> None:
        nonlocal done
        done = number
        if sys.stderr.isatty() or not as_json:
            typer.echo(f"run {number + 1} of {runs}: {size:,} devices", err=True)

    try:
        costs = scaling.measure(arguments, watch)
    except KeyboardInterrupt:
        typer.echo(f"stopped after {done} of {runs} runs", err=True)
        sys.exit(130)
    if as_json:
        sizes = [{name: getattr(cost, name) for name in cost.__struct_fields__} for cost in costs]
        typer.echo(
            json.dumps({"sizes": sizes, "ratio": scaling.ratio(costs), "most": scaling.MOST})
        )
    else:
        typer.echo(scaling.in_words(costs))
    if scaling.ratio(costs) > scaling.MOST:
        raise typer.Exit(1)
