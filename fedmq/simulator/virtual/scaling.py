"""What an event costs as the fleet grows: the same work by ever more devices, each in a process.

Refuses a fleet that does not run at one of the sizes. The order alternates, and of all repeats the
best counts: whatever else the machine does makes a run slower, and never faster.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from schemas.errors import FedmqError

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
REPEATS: Final = 3
MOST: Final = 1.5
"""So many times the cost of an event in the smallest fleet it may be in the largest."""


class Cost(msgspec.Struct, frozen=True):
    """Of one size.

    Attributes:
        devices: the size.
        events: that were worked off.
        us: microseconds an event, of the best repeat.
        peak_mib: the most memory a repeat has held.
        digest: of the model at the end; the repeats agree.
    """

    devices: int
    events: int
    us: float
    peak_mib: float
    digest: str


def order() -> Iterator[int]:
    """Sizes: up, down, up."""
    for repeat in range(REPEATS):
        yield from SIZES if repeat % 2 == 0 else reversed(SIZES)


def measure(arguments: Sequence[str], watch: Callable[[int, int], None]) -> list[Cost]:
    """Run `fedmq simulate` with these arguments at every size.

    Args:
        arguments: besides --devices and --json.
        watch: is told how many runs are done, and the size that is next.

    Raises:
        FedmqError: a run failed, or two of one size differ.
    """
    found: dict[int, list[dict[str, Any]]] = {size: [] for size in SIZES}
    for number, size in enumerate(order()):
        watch(number, size)
        found[size].append(_run(size, arguments))
    return [_cost(size, runs) for size, runs in found.items()]


def ratio(costs: Sequence[Cost]) -> float:
    """An event's cost in the largest fleet, in those of the smallest."""
    return costs[-1].us / costs[0].us


def in_words(costs: Sequence[Cost]) -> str:
    """A table."""
    lines = [f"{'devices':>10} {'events':>8} {'us an event':>12} {'times':>6} {'peak MiB':>9}"]
    lines += [
        f"{c.devices:>10,} {c.events:>8,} {c.us:>12,.1f} {c.us / costs[0].us:>6.2f} "
        f"{c.peak_mib:>9,.0f}"
        for c in costs
    ]
    kept = "at most" if ratio(costs) <= MOST else "MORE than"
    lines.append(f"An event costs {ratio(costs):.2f} times as much, {kept} {MOST}.")
    return "\n".join(lines)


def _run(size: int, arguments: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "fedmq.cli", "simulate", *arguments]
    done = subprocess.run(
        [*command, "--devices", str(size), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().removeprefix("fedmq: ") or f"exit code {done.returncode}"
        raise FedmqError(f"the run with {size:,} devices failed: {said}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _cost(size: int, runs: Sequence[dict[str, Any]]) -> Cost:
    digests = {run["digest"] for run in runs}
    if len(digests) > 1:
        raise FedmqError(f"runs with {size:,} devices and one seed differ: {sorted(digests)}")
    return Cost(
        devices=size,
        events=runs[0]["events"],
        us=min(1e6 * run["wall_s"] / run["events"] for run in runs),
        peak_mib=max(run["peak_mib"] for run in runs),
        digest=runs[0]["digest"],
    )
