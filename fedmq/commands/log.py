"""`fedmq log`: who made a version. Folds the log again and says what became of every update."""

import asyncio
import csv
import json
import sys
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from aggregator.fold import Decided
from aggregator.history import History
from aggregator.replay import Replay, length
from fedmq.commands.archiving import Archive, EpochOf, From, Offline, Source, folded
from fedmq.commands.deciding import columns
from fedmq.commands.running import Config, RedisUrl
from schemas.names import DeviceId, device_id, task_name
from schemas.outcomes import FOLDED, outcome_name

COLUMNS = (
    "entry",
    "at",
    "version",
    "device",
    "boot",
    "seq",
    "base",
    "staleness",
    "weight",
    "norm",
    "outcome",
)


def log(
    name: Annotated[str, typer.Argument(help="The task's name.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="Only what went into this version.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Only what this device has sent.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last so many rows.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV with a header.")] = False,
    archive: Archive = None,
    offline: Offline = False,
    export: From = None,
    epoch: EpochOf = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Show who made a version: a row an update, with staleness, weight and length (L2 norm).

    The log is folded again from its beginning, so it needs all of it: what was trimmed from Redis
    comes from the archive. Of a refused update the version is the model's at that moment; one that
    waits in the buffer is `buffered`, one that a rollback dropped from it `dropped`.

    Example: fedmq log pumps --version 42
    """
    task = task_name(name)
    rows = Rows(version, None if device is None else device_id(device), last)

    def make(history: History) -> Replay:
        return Replay(history.begin, recorded=history.recorded, observer=rows.note)

    source = Source(config, redis_url, archive, offline, export, epoch)
    replay, history = asyncio.run(folded(task, source, make, rows.enough))
    rows.finish(replay)
    said = [*replay.findings.erased, *replay.findings.notes, *history.notes]
    for sentence in said:
        typer.echo(f"note: {sentence}", err=True)
    found = list(rows.kept)
    if as_json:
        document = {"task": task, "summary": rows.summary(), "notes": said, "updates": found}
        typer.echo(json.dumps(document))
    elif as_csv:
        csv.writer(sys.stdout).writerows([COLUMNS, *(list(row.values()) for row in found)])
    else:
        columns(for_people(found), COLUMNS)
        typer.echo(f"{task}: {rows.sentence()}")


class Rows:
    """Collects the rows that are asked for."""

    def __init__(self, version: int | None, device: DeviceId | None, last: int | None) -> None:
        self._version = version
        self._device = device
        self.kept: deque[dict[str, Any]] = deque(maxlen=last)

    def note(self, decided: Decided) -> None:
        """Keep a row, if it is asked for."""
        if self._device not in {None, decided.device}:
            return
        if self._version is not None and (decided.version, decided.outcome) != (
            self._version,
            FOLDED,
        ):
            return
        at = datetime.fromtimestamp(decided.entry_id.ms / 1000, UTC)
        norm = None if decided.delta is None else length(decided.delta)
        read = decided.base >= 0
        self.kept.append(
            {
                "entry": str(decided.entry_id),
                "at": f"{at:%FT%TZ}",
                "version": decided.version,
                "device": decided.device,
                "boot": f"{decided.boot:08x}" if read else None,
                "seq": decided.seq if read else None,
                "base": decided.base if read else None,
                "staleness": decided.staleness if read else None,
                "weight": decided.weight,
                "norm": norm,
                "outcome": outcome_name(decided.outcome),
            }
        )

    def enough(self, replay: Replay) -> bool:
        """After every entry: mind rollbacks, and see whether more could come."""
        for event in replay.changes.events:
            if event.event == "rolled_back":
                self._mark(event.version, "dropped")
        return self._version is not None and replay.version >= self._version

    def finish(self, replay: Replay) -> None:
        """What waits in the buffer is no version yet."""
        self._mark(replay.version + 1, "buffered")

    def _mark(self, version: int, outcome: str) -> None:
        for row in self.kept:
            if row["version"] == version and row["outcome"] == "folded":
                row["outcome"] = outcome

    def summary(self) -> dict[str, Any]:
        """Figures over the rows."""
        folded = [row for row in self.kept if row["outcome"] == "folded"]
        versions = [row["version"] for row in folded]
        return {
            "updates": len(self.kept),
            "devices": len({row["device"] for row in self.kept}),
            "outcomes": dict(sorted(Counter(row["outcome"] for row in self.kept).items())),
            "weight": sum(row["weight"] for row in folded),
            "versions": [min(versions), max(versions)] if versions else None,
        }

    def sentence(self) -> str:
        """The same for people."""
        facts = self.summary()
        outcomes = ", ".join(f"{count} {name}" for name, count in facts["outcomes"].items())
        versions = facts["versions"]
        into = f", into versions {versions[0]} to {versions[1]}" if versions else ""
        who = f"{facts['updates']} updates of {facts['devices']} devices"
        return f"{who} ({outcomes or 'none'}), weight {facts['weight']:.4g}{into}"


def for_people(rows: Sequence[dict[str, Any]]) -> list[list[object]]:
    """Rows as short as a terminal wants them."""
    return [
        [float(f"{cell:.4g}") if isinstance(cell, float) else cell for cell in row.values()]
        for row in rows
    ]
