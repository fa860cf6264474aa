"""What `fedmq simulate` does: read fleets, run them below a progress bar, tell what came out.

Kept apart from the command, whose help must not wait for the engine to be imported. BLAS has one
thread: the matrices are small, and so the sums have one order.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedmq.simulator.soak.run import this_machine
from fedmq.simulator.virtual import compare, report
from fedmq.simulator.virtual.engine import run
from fedmq.simulator.virtual.fleet import FleetFile, check_target, checked_fleet
from fedmq.simulator.virtual.fleet import Progress as Reached
from fedmq.simulator.virtual.fleet_file import read_fleet
from fedmq.simulator.virtual.learning.learner import NetworkLearner, learner_of
from fedmq.simulator.virtual.outcome import Outcome
from fedmq.simulator.virtual.peak import peak_mib
from fedmq.simulator.virtual.plots import draw
from fedmq.simulator.virtual.presets import preset
from schemas.errors import ConfigError

_NEEDS = "needs scikit-learn and threadpoolctl: pip install 'fedmq[demo]'"


@dataclass(frozen=True, slots=True)
class Changes:
    """What the command line says otherwise than a file. None: nothing.

    Attributes:
        devices: how many.
        seed: of everything that is drawn.
        uploads: at which the run ends, with no target.
        most: no more uploads than that, with no target.
    """

    devices: int | None = None
    seed: int | None = None
    uploads: int | None = None
    most: int | None = None

    def of(self, fleet: FleetFile) -> FleetFile:
        """The changed fleet. Raises ConfigError."""
        stop = fleet.stop
        uploads = stop.uploads if self.uploads is None else self.uploads
        if self.most is not None:
            uploads = min(uploads or self.most, self.most)
        if (self.uploads, self.most) != (None, None):
            stop = msgspec.structs.replace(stop, uploads=uploads, target={})
        changed = msgspec.structs.replace(
            fleet,
            devices=fleet.devices if self.devices is None else self.devices,
            seed=fleet.seed if self.seed is None else self.seed,
            stop=stop,
        )
        return checked_fleet(changed)


@dataclass(slots=True)
class Sofar:
    """Where it stands, for who is interrupted.

    Attributes:
        name: of the fleet that runs.
        reached: by it.
        done: runs that have ended.
    """

    name: str = ""
    reached: Reached | None = None
    done: list[Outcome] = field(default_factory=list)


def fleets_of(files: Sequence[Path], changes: Changes) -> list[FleetFile]:
    """Read them; none: the built-in one. All have the first one's target. Raises ConfigError."""
    fleets = [changes.of(read_fleet(file)) for file in files] or [changes.of(preset())]
    target = fleets[0].stop.target
    found = [
        msgspec.structs.replace(fleet, stop=msgspec.structs.replace(fleet.stop, target=target))
        for fleet in fleets
    ]
    for fleet in found:
        check_target(fleet)
    return found


def simulated(fleets: Sequence[FleetFile], sofar: Sofar) -> list[Outcome]:
    """Run one after another; a bar goes to stderr where that is a terminal. Raises ConfigError."""
    try:
        from threadpoolctl import threadpool_limits  # noqa: PLC0415 - comes with demo's extra
    except ImportError as exc:
        raise ConfigError("simulate", _NEEDS) from exc
    with threadpool_limits(1, "blas"):
        for fleet in fleets:
            sofar.name, sofar.reached = fleet.name, None
            sofar.done.append(_run(fleet, sofar))
    return sofar.done


def told(sofar: Sofar) -> str:
    """What was reached when it was interrupted."""
    lines = [report.in_words(outcome) for outcome in sofar.done]
    if (at := sofar.reached) is None:
        return "\n".join([*lines, f"stopped before {sofar.name or 'the fleet'} had begun"])
    figures = ", ".join(f"{name} {report.value_of(name, v)}" for name, v in at.figures.items())
    now = (
        f"stopped; {sofar.name}: {at.uploads:,} uploads, version {at.version}, "
        f"{report.duration(at.virtual_s)} of virtual time, {figures}"
    )
    return "\n".join([*lines, now])


def document(outcomes: Sequence[Outcome]) -> Mapping[str, Any]:
    """One run, or all of a comparison, for programs."""
    found = [
        report.as_json(outcome, machine=this_machine(outcome.seed), peak_mib=peak_mib())
        for outcome in outcomes
    ]
    return found[0] if len(found) == 1 else {"target": outcomes[0].target, "runs": found}


def tell(outcomes: Sequence[Outcome], plots: Path | None, *, as_json: bool) -> None:
    """Print what came out, and draw it where that is wanted. Raises ConfigError, OSError."""
    drawn = draw(plots, outcomes) if plots is not None else []
    if as_json:
        typer.echo(json.dumps(document(outcomes)))
        return
    if len(outcomes) == 1:
        typer.echo(report.in_words(outcomes[0]))
    else:
        typer.echo(compare.side_by_side(outcomes))
    if drawn:
        typer.echo(f"Drawn: {', '.join(str(path) for path in drawn)}")


def _run(fleet: FleetFile, sofar: Sofar) -> Outcome:
    learner = _learner(fleet)
    bar = _bar()
    with bar or nullcontext():
        line = bar.add_task(fleet.name, total=None, now="") if bar else None

        def watch(at: Reached) -> None:
            sofar.reached = at
            if bar is None or line is None:
                return
            figures = " ".join(
                f"{name} {report.value_of(name, value)}" for name, value in at.figures.items()
            )
            now = f"{at.uploads:,} uploads, version {at.version}, {figures}"
            bar.update(line, completed=at.uploads, total=at.of or None, now=now)

        return run(fleet, learner, watch)


def _learner(fleet: FleetFile) -> NetworkLearner:
    try:
        return learner_of(
            fleet.data, fleet.attack, fleet.task.train, devices=fleet.devices, seed=fleet.seed
        )
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "sklearn":
            raise
        raise ConfigError("data.source", f'"digits" {_NEEDS}') from exc


def _bar() -> Progress | None:
    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
