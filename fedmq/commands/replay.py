"""`fedmq replay`: fold the log again: an audit, a time machine, a history without a device."""

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer

from aggregator.history import History
from aggregator.replay import Findings, Model, Replay
from aggregator.segments import BrokenArchiveError
from fedmq.commands.archiving import Archive, EpochOf, From, Offline, Source, folded
from fedmq.commands.running import Config, RedisUrl
from schemas.errors import ConfigError
from schemas.names import device_id, task_name
from schemas.params import unflatten

_SHOWN: Final = 5


def replay(
    name: Annotated[str, typer.Argument(help="The task's name.")],
    until: Annotated[
        int | None, typer.Option(min=0, help="Stop at this version, published or not.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help="A device whose contributions weigh nothing; as often as needed."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the model there, as .npz.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    archive: Archive = None,
    offline: Offline = False,
    export: From = None,
    epoch: EpochOf = None,
    config: Config = None,
    redis_url: RedisUrl = None,
) -> None:
    """Fold a task's log again, and compare every published version with what was recorded.

    An audit: exit code 1 when a digest differs or the archive is broken. A time machine: --until
    gives the model of any version, also of one that was never published. A history without a
    device: --without folds the log with its weight at zero; admissions and buffer borders stay as
    logged. That removes its direct contribution, not what others learnt from it: their updates
    were trained on models that held it.

    Example: fedmq replay pumps --without pump-7 -o without-pump-7.npz
    """
    task = task_name(name)
    devices = frozenset(device_id(text) for text in without or ())
    if output is not None and not output.parent.is_dir():
        raise ConfigError("output", f"{output.parent} is no folder; make it first")

    def make(history: History) -> Replay:
        return Replay(history.begin, recorded=history.recorded, without=devices, until=until)

    source = Source(config, redis_url, archive, offline, export, epoch)
    try:
        done, history = asyncio.run(folded(task, source, make))
    except BrokenArchiveError as exc:
        typer.echo(f"fedmq: {exc}", err=True)
        raise typer.Exit(1) from exc
    for device in sorted(devices - done.honest.state.devices.keys()):
        done.findings.notes.append(f"{device} has sent nothing that this log holds")
    model, findings = done.model, done.findings
    findings.notes += history.notes
    if output is not None:
        _write(output, model)
    missed = until is None and history.version not in {None, done.version}
    if as_json:
        typer.echo(json.dumps(document(task, model, findings, sorted(devices))))
    else:
        _say(task, model, findings, sorted(devices), compared=bool(history.recorded))
        if output is not None:
            typer.echo(f"{output}: version {model.version}, digest {model.digest}")
    if findings.different or missed:
        raise typer.Exit(1)


def document(task: str, model: Model, findings: Findings, without: list[str]) -> dict[str, Any]:
    """The answer for machines."""
    different = [asdict(each) | {"entry_id": str(each.entry_id)} for each in findings.different]
    return {
        "task": task,
        "version": model.version,
        "digest": model.digest,
        "without": without,
        "entries": findings.entries,
        "updates_folded": findings.updates,
        "same": findings.same,
        "different": different,
        "unrecorded": findings.unrecorded,
        "erased": findings.erased,
        "notes": findings.notes,
    }


def _say(
    task: str, model: Model, findings: Findings, without: list[str], *, compared: bool
) -> None:
    whom = f" without {', '.join(without)}" if without else ""
    typer.echo(
        f"{task}: {findings.entries:,} entries folded, {findings.updates:,} updates in the model; "
        f"version {model.version}{whom} has digest {model.digest}"
    )
    if compared:
        bare = f", {findings.unrecorded} have no record" if findings.unrecorded else ""
        typer.echo(
            f"{findings.same} published versions have the recorded digest, "
            f"{len(findings.different)} another{bare}"
        )
    else:
        typer.echo(
            "no records to compare with; every folded update has named the digest of its base"
        )
    for each in findings.different[:_SHOWN]:
        typer.echo(
            f"version {each.version} (entry {each.entry_id}): recorded {each.recorded}, "
            f"folded {each.folded}"
        )
    if len(findings.different) > _SHOWN:
        typer.echo(f"... and {len(findings.different) - _SHOWN} more; --json gives all")
    for sentence in [*findings.erased, *findings.notes]:
        typer.echo(f"note: {sentence}", err=True)


def _write(path: Path, model: Model) -> None:
    tensors: dict[str, Any] = dict(unflatten(model.spec.params, model.params))
    try:
        with path.open("wb") as file:
            np.savez(file, **tensors)
    except OSError as exc:
        raise ConfigError("output", f"cannot be written: {exc}") from exc
