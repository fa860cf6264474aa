"""`fedmq soak`: break a real fleet in every way that there is, and count what is left."""

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live

from fedmq.commands.running import until_told
from fedmq.simulator.checker import Account, CheckerError, Verdict
from fedmq.simulator.checker.orders import CODECS
from fedmq.simulator.profiles import profile as link_profile
from fedmq.simulator.soak.evidence import check as check_folder
from fedmq.simulator.soak.fleet import processes_file
from fedmq.simulator.soak.plan import Plan, soak_spec
from fedmq.simulator.soak.processes import SOAK, end_left, still_there
from fedmq.simulator.soak.programs import checked_broker, checked_redis
from fedmq.simulator.soak.report import Progress, in_words, kept, report
from fedmq.simulator.soak.run import Sight, this_machine
from fedmq.simulator.soak.run import run as run_soak
from fedmq.simulator.soak.schedule import KINDS, schedule
from fedmq.simulator.soak.view import panel
from fedmq.simulator.tun import refuse_unless_possible
from schemas.errors import ConfigError, FedmqError


def soak(
    seconds: Annotated[float, typer.Option(min=1, help="How long faults are struck.")] = 60.0,
    hours: Annotated[float | None, typer.Option(min=0.001, help="The same in hours.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of faults, links and training.")] = 0,
    devices: Annotated[int, typer.Option(min=1, max=64, help="How many devices.")] = 6,
    per_minute: Annotated[
        float, typer.Option(min=0.1, max=120, help="Faults a minute, about.")
    ] = 24.0,
    profile: Annotated[
        str | None, typer.Option(help="One link for all: nb-iot, lte-m, ... [default: a mix]")
    ] = None,
    codec: Annotated[str, typer.Option(help=f"Of the task: {', '.join(CODECS)}.")] = "sq",
    lattice: Annotated[
        bool, typer.Option(help="Publish the model on a lattice: diffs and keyframes.")
    ] = True,
    broker: Annotated[
        str, typer.Option(help="mosquitto, lab, or auto: mosquitto where it is installed.")
    ] = "auto",
    redis: Annotated[
        str, typer.Option(help="valkey (of the wheel) or redis-server (then no clock jumps).")
    ] = "auto",
    real_tcp: Annotated[
        bool,
        typer.Option(help="Packets that are really lost, in network namespaces (root, Linux)."),
    ] = False,
    quick: Annotated[bool, typer.Option(help="20 seconds, 3 devices.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[Path, typer.Option(help="Where the soak's folder is made.")] = Path("runs"),
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the soak in this folder, up to --seconds.")
    ] = None,
    check: Annotated[
        Path | None, typer.Option(help="Only judge a finished soak's folder once more.")
    ] = None,
    show: Annotated[
        int | None,
        typer.Option("--schedule", min=1, help="Only print the first N faults of the seed."),
    ] = None,
) -> None:
    """Break a real fleet in every way there is, for a long time, and count with a witness.

    Starts a broker, two Redis (a replica takes over), two bridges, two aggregators and real device
    agents on links like theirs, all on loopback, and strikes them on a seeded schedule: SIGKILL and
    SIGSTOP of each, failover, partitions one way and both, corrupt bytes, poison, full disks and
    memory, clocks that jump, cards that are old, new or torn. Then everything is healed, and a
    checker that shares no code with the aggregator folds the raw log once more and holds it against
    the ledgers of the devices' witnesses. Exit code 1 when anything was lost or folded twice, when
    a bit differs, a device does not have the newest model, or a process of fedmq has failed.

    Needs nothing but the package; mosquitto is taken where it is installed, clocks jump where
    libfaketime is. Corrupt bytes are found because the task asks for checksums.

    Example: fedmq soak --seconds 60 --seed 1

    After a power cut: fedmq soak --resume runs/soak-... --hours 8

    What is to come: fedmq soak --seed 1 --schedule 20
    """
    if check is not None:
        _finish(check, *_judged(check), as_json=as_json)
    wanted_s = hours * 3600 if hours is not None else seconds
    if quick:
        wanted_s, devices = min(wanted_s, 20.0), min(devices, 3)
    plan = Plan(
        seed=seed,
        seconds=wanted_s,
        devices=devices,
        per_minute=per_minute,
        profile=profile or "",
        codec=codec,
        lattice=lattice,
        real_tcp=real_tcp,
    )
    if show is not None:
        _print_schedule(plan, show)
        return
    folder, progress = _begun(plan, output, resume, broker=broker, redis=redis)
    logging.getLogger("fedmq").setLevel(logging.ERROR)  # trouble is what it is about
    told: list[signal.Signals] = []
    try:
        verdict, account, evidence = asyncio.run(
            until_told(_watched(folder, progress, quiet=as_json), told)
        )
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo(f"stopped; fedmq soak --resume {folder} goes on", err=True)
        sys.exit(128 + (told or [signal.SIGINT])[0])
    except CheckerError as exc:
        raise FedmqError(f"the recorded log cannot be folded: {exc}; see {folder}") from exc
    _finish(folder, progress, verdict, account, evidence, as_json=as_json)


def _begun(
    plan: Plan, output: Path, resume: Path | None, *, broker: str, redis: str
) -> tuple[Path, Progress]:
    """The folder of a new soak, or of one that goes on. Raises ConfigError."""
    if resume is not None:
        progress = _progress_in(resume, "resume")
        longer = max(plan.seconds, progress.elapsed_s)
        progress.plan = msgspec.structs.replace(progress.plan, seconds=longer)
        progress.done = False
        if pid := still_there(processes_file(resume)).get(SOAK):
            raise ConfigError("resume", f"{resume} is being soaked by process {pid}: end it first")
        if left := end_left(processes_file(resume)):
            typer.echo(f"ended what the soak before had left: {', '.join(left)}", err=True)
        return resume, progress
    soak_spec(plan)
    for number in range(plan.devices):
        model = link_profile(plan.profile_of(number))
        if plan.real_tcp:
            refuse_unless_possible(model)
    plan = msgspec.structs.replace(plan, broker=checked_broker(broker), redis=checked_redis(redis))
    folder = output / f"soak-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{plan.seed}"
    try:
        folder.mkdir(parents=True)
    except OSError as exc:
        raise ConfigError("output", f"{folder} cannot be made: {exc.strerror}") from exc
    return folder, Progress(plan)


def _progress_in(folder: Path, field: str) -> Progress:
    try:
        return msgspec.json.decode((folder / "progress.json").read_bytes(), type=Progress)
    except (OSError, msgspec.DecodeError) as exc:
        raise ConfigError(field, f"{folder} holds no soak ({exc})") from exc


async def _watched(
    folder: Path, progress: Progress, *, quiet: bool
) -> tuple[Verdict, Account, Mapping[str, Any]]:
    console = Console(stderr=True)
    live = Live(console=console, refresh_per_second=4, transient=True)
    shown = nullcontext() if quiet and not console.is_terminal else live
    with shown:

        def watch(sight: Sight) -> None:
            live.update(panel(sight))

        return await run_soak(folder, progress, watch)


def _judged(folder: Path) -> tuple[Progress, Verdict, Account, Mapping[str, Any]]:
    progress = _progress_in(folder, "check")
    with Console(stderr=True).status("folding the recorded log once more"):
        try:
            return progress, *check_folder(folder)
        except CheckerError as exc:
            raise FedmqError(f"the recorded log cannot be folded: {exc}") from exc


def _finish(
    folder: Path,
    progress: Progress,
    verdict: Verdict,
    account: Account,
    evidence: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Say what it came to, keep it, and end with its exit code."""
    machine = this_machine(progress.plan.seed)
    outcome = report(progress, verdict, account, evidence=evidence, machine=machine)
    (folder / "report.json").write_bytes(msgspec.json.format(msgspec.json.encode(outcome)))
    if as_json:
        typer.echo(json.dumps(outcome))
    else:
        typer.echo(in_words(progress, verdict, account, evidence))
        typer.echo(f"Files: {folder}/ (report.json, faults.jsonl, archive, ledgers, logs)")
    sys.exit(0 if kept(progress, verdict, account, evidence) else 1)


def _print_schedule(plan: Plan, count: int) -> None:
    """The first faults of a seed, and by what means each is struck."""
    means = {(kind.name, place): kind.means for kind in KINDS for place in kind.places}
    faults = schedule(plan.seed, per_minute=plan.per_minute, devices=plan.devices)
    at_s = 0.0
    for fault in islice(faults, count):
        at_s += fault.after_s
        what = f"{fault.kind} {fault.place} {fault.which}"
        told = means[fault.kind, fault.place]
        typer.echo(f"{at_s:8.1f} s  {what:24} {fault.lasts_s:4.1f} s  {told}")
        at_s += fault.lasts_s
