"""A soak, from its first process to its verdict. To be read from `run` downwards."""

import asyncio
import json
import os
import platform
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, Final

import msgspec
import numpy as np
from redis.exceptions import RedisError

from aggregator.tasks import create_task, task_status
from fedmq.simulator.checker import Account, Verdict
from fedmq.simulator.soak.cards import adopted_on, open_on
from fedmq.simulator.soak.evidence import check, gather
from fedmq.simulator.soak.fleet import Fleet, fleet
from fedmq.simulator.soak.plan import EPOCH, TASK, soak_spec
from fedmq.simulator.soak.processes import SOAK
from fedmq.simulator.soak.report import Progress
from fedmq.simulator.soak.schedule import Fault, schedule
from fedmq.simulator.soak.strike import heal, strike
from lifetimes.together import end
from redis_session.connection import connect
from schemas.errors import FedmqError
from schemas.initial import initial_params
from schemas.keys import TaskKeys
from schemas.wire import decode_manifest

WARM_UP_S: Final = 60.0
"""How long the fleet may take to fold its first updates."""

DRAIN_S: Final = 180.0
"""How long what is left may take in good weather."""

LOOK_S: Final = 0.5


@dataclass(slots=True)
class Sight:
    """What a watcher sees."""

    progress: Progress
    phase: str = "starting"
    fault: str = ""
    status: Mapping[str, Any] = field(default_factory=dict)
    open: int = 0
    recent: list[str] = field(default_factory=list)


Watch = Callable[[Sight], None]


async def run(
    folder: Path, progress: Progress, watch: Watch
) -> tuple[Verdict, Account, Mapping[str, Any]]:
    """Strike a fleet until the plan's time is over, let it come to rest, and judge.

    Args:
        folder: of this soak; a resumed one goes on in its own.
        progress: where it stands; kept in `progress.json`.
        watch: is shown what happens.

    Raises:
        FedmqError: a server did not come up, or the fleet never began to fold.
    """
    sight = Sight(progress)
    (folder / "drain").unlink(missing_ok=True)
    _keep(folder, progress)

    def note_primary(primary: int) -> None:
        progress.primary = primary
        _keep(folder, progress)

    async with fleet(progress.plan, folder, primary=progress.primary) as here:
        here.on_primary = note_primary
        here.processes.note(SOAK, os.getpid())
        await _begin(here)
        looking = asyncio.create_task(_look(here, sight, watch))
        try:
            sight.phase = "warming up"
            await _until(lambda: bool(sight.status.get("updates_folded")), WARM_UP_S, "folds")
            sight.phase = "breaking things"
            await _strike_on(here, sight)
            sight.phase = "coming to rest"
            await heal(here)
            here.drain_file.touch()
            with suppress(TimeoutError):  # then the verdict says what is missing
                async with asyncio.timeout(DRAIN_S):
                    await _rest(here)
        finally:
            await end([looking])
        sight.phase = "judging"
        watch(sight)
        await gather(here)
    found = await asyncio.to_thread(check, folder)
    progress.done = True
    _keep(folder, progress)
    return found


async def _begin(here: Fleet) -> None:
    """The task, if it is new; then everybody who works on it."""
    plan = here.plan
    spec = soak_spec(plan)
    async with connect(here.redis.url) as redis:
        if not await redis.exists(TaskKeys(TASK).origin):
            # the shell makes the generator that the core is given
            rng = np.random.default_rng(plan.init.seed)  # noqa: TID251
            params = initial_params(spec.params, plan.init, rng)
            await create_task(redis, TASK, spec, params, epoch=EPOCH)
    for machine in [*here.bridges, *here.aggregators]:
        machine.start()
    for device in here.devices:
        device.machine.start()


async def _strike_on(here: Fleet, sight: Sight) -> None:
    """One fault after the other."""
    plan, progress = here.plan, sight.progress
    faults = schedule(plan.seed, per_minute=plan.per_minute, devices=plan.devices)
    began, before = monotonic(), progress.elapsed_s
    for fault in islice(faults, progress.next_fault, None):
        left = plan.seconds - progress.elapsed_s
        if left <= 0:
            return
        await asyncio.sleep(min(fault.after_s, left))
        sight.fault = _in_words(here, fault)
        why = await strike(here, fault)
        name = f"{fault.kind} {fault.place}"
        if why:
            progress.left_out[f"{name}: {why}"] = progress.left_out.get(f"{name}: {why}", 0) + 1
        else:
            progress.struck[name] = progress.struck.get(name, 0) + 1
        progress.elapsed_s = before + monotonic() - began
        progress.next_fault = fault.number + 1
        _note(here.folder, progress, fault, why)
        sight.recent = [*sight.recent[-5:], f"{sight.fault}{f' ({why})' if why else ''}"]
        sight.fault = ""


def _in_words(here: Fleet, fault: Fault) -> str:
    many = {"device": here.plan.devices, "bridge": 2, "aggregator": 2}.get(fault.place, 0)
    which = f" {fault.which % many}" if many else ""
    return f"{fault.kind} {fault.place}{which}, {fault.lasts_s:.1f} s"


def _note(folder: Path, progress: Progress, fault: Fault, why: str) -> None:
    line = {"t": round(progress.elapsed_s, 2), "number": fault.number, "kind": fault.kind}
    line |= {"place": fault.place, "which": fault.which, "lasts_s": fault.lasts_s, "why_not": why}
    with (folder / "faults.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    _keep(folder, progress)


def _keep(folder: Path, progress: Progress) -> None:
    part = folder / "progress.json.part"
    part.write_bytes(msgspec.json.format(msgspec.json.encode(progress)))
    part.replace(folder / "progress.json")


async def _look(here: Fleet, sight: Sight, watch: Watch) -> None:
    """Show what happens, and start again who ended by himself."""
    before = Counter(sight.progress.deaths)
    while True:
        if not sight.fault:  # while a fault is struck, who is dead may be meant to be
            for machine in here.machines:
                machine.revive()
            now = Counter({machine.name: machine.deaths for machine in here.machines})
            sight.progress.deaths = dict(before + now)
            with suppress(sqlite3.OperationalError):
                sight.open = await asyncio.to_thread(_open, here)
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(2), connect(here.redis.url) as redis:
                sight.status = await task_status(redis, TASK) or sight.status
        watch(sight)
        await asyncio.sleep(LOOK_S)


def _open(here: Fleet) -> int:
    """What is open on living devices; the card of a dead one is not touched."""
    alive = [device for device in here.devices if device.machine.runs]
    return sum(len(open_on(device.spool, device.name)) for device in alive)


async def _until(holds: Callable[[], bool], patience_s: float, what: str) -> None:
    try:
        async with asyncio.timeout(patience_s):
            while not holds():  # noqa: ASYNC110 - other processes make it so
                await asyncio.sleep(0.1)
    except TimeoutError as exc:
        raise FedmqError(f"the fleet never {what} within {patience_s:.0f} s; see its logs") from exc


async def _rest(here: Fleet) -> None:
    """Until nothing is open, all is folded and published, and every device has the newest model."""
    quiet = 0
    while quiet < 3:
        quiet = quiet + 1 if await _is_at_rest(here) else 0
        await asyncio.sleep(LOOK_S)


async def _is_at_rest(here: Fleet) -> bool:
    if not all(device.machine.runs for device in here.devices):
        return False
    with suppress(RedisError, OSError, sqlite3.OperationalError):
        if await asyncio.to_thread(_open, here):
            return False
        async with connect(here.redis.url) as redis:
            status: Any = await task_status(redis, TASK)
        done = not status["updates_stored"] and not status["buffered"]
        newest = status["published"]
        return (
            done and newest == status["version"] and await asyncio.to_thread(_level, here, newest)
        )
    return False


def _level(here: Fleet, version: int) -> bool:
    """Whether every device has this version."""
    for device in here.devices:
        manifest = adopted_on(device.spool)
        if manifest is None or decode_manifest(manifest).version != version:
            return False
    return True


def this_machine(seed: int) -> dict[str, str]:
    """Where and with what it was measured."""
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "fedmq": metadata.version("fedmq"),
        "seed": str(seed),
    }
