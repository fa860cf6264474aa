"""What every benchmark needs: its arguments, what machine this is, and one way to report.

A benchmark makes a `Report`: figures for people and machines, and the aims it has promised. On
stdout comes one table, or one JSON object with --json; progress goes to stderr.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

MOSQUITTO: Final = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
REDIS: Final = shutil.which("redis-server", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line said."""

    seed: int
    quick: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Aim:
    """One promise: a figure, and the bound it has to keep."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def kept(self) -> bool:
        """Tell whether the figure keeps the bound; a figure that is NaN never does."""
        above = self.at_most is None or self.value <= self.at_most
        return above and (self.at_least is None or self.value >= self.at_least)


@dataclass(slots=True)
class Report:
    """What was measured.

    Attributes:
        name: of the benchmark.
        repeats: how often each contender ran.
        figures: what was measured, by name, unit in the name.
        aims: what was promised of it.
        notes: what a reader must know to judge the figures.
    """

    name: str
    repeats: int
    figures: dict[str, float] = field(default_factory=dict)
    aims: list[Aim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(
    name: str, about: str, measure: Callable[[Arguments], Report], argv: Sequence[str] | None = None
) -> int:
    """Parse, measure, print; 0 when every aim is kept, else 1."""
    arguments = _parse(name, about, argv)
    report = measure(arguments)
    facts = _facts(report, arguments)
    print(msgspec.json.encode(facts).decode() if arguments.as_json else _table(report, facts))
    return 0 if all(aim.kept for aim in report.aims) else 1


def progress(text: str) -> None:
    """Say on stderr how far it is."""
    print(text, file=sys.stderr, flush=True)


def generator(seed: int) -> np.random.Generator:
    """The generator that a seed names."""
    return np.random.Generator(np.random.PCG64(seed))


def _parse(name: str, about: str, argv: Sequence[str] | None) -> Arguments:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=about)
    parser.add_argument("--seed", type=int, default=1, help="of everything drawn [1]")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller repeats")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    said = parser.parse_args(argv)
    return Arguments(said.seed, said.quick, said.json)


def _facts(report: Report, arguments: Arguments) -> dict[str, object]:
    aims = [
        {"name": a.name, "value": a.value, "at_most": a.at_most, "at_least": a.at_least}
        | {"kept": a.kept}
        for a in report.aims
    ]
    return {
        "benchmark": report.name,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
        "versions": _versions(),
        "seed": arguments.seed,
        "quick": arguments.quick,
        "repeats": report.repeats,
        "figures": {name: _rounded(value) for name, value in report.figures.items()},
        "aims": aims,
        "kept": all(aim.kept for aim in report.aims),
        "notes": report.notes,
    }


def _table(report: Report, facts: dict[str, object]) -> str:
    machine, versions = facts["machine"], facts["versions"]
    assert isinstance(machine, dict)
    assert isinstance(versions, dict)
    lines = [
        f"{report.name}: {machine['cpu']}, {machine['cores']} cores, load {machine['load']}",
        ", ".join(f"{k} {v}" for k, v in versions.items()),
        f"seed {facts['seed']}, {report.repeats} repeats, medians",
        "",
    ]
    width = max((len(name) for name in report.figures), default=0)
    lines += [f"  {name:<{width}}  {value:12,.3f}" for name, value in report.figures.items()]
    lines += ["", *(_line(aim) for aim in report.aims), *(f"note: {n}" for n in report.notes)]
    return "\n".join(lines)


def _line(aim: Aim) -> str:
    bound = f"at most {aim.at_most:g}" if aim.at_most is not None else f"at least {aim.at_least:g}"
    return f"aim {'kept  ' if aim.kept else 'MISSED'}: {aim.name}: {aim.value:.3f}, {bound}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "mosquitto": _version(MOSQUITTO, "-h", r"version ([\d.]+)"),
        "redis": _version(REDIS, "--version", r"v=([\d.]+)"),
    }


def _version(program: str | None, flag: str, pattern: str) -> str:
    if program is None:
        return "none"
    said = subprocess.run([program, flag], capture_output=True, text=True, check=False)
    found = re.search(pattern, said.stdout + said.stderr)
    return found[1] if found else "unknown"
