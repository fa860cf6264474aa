"""Warm standby: how long a task stands still when the aggregator that holds it dies or hangs.

Two `fedmq aggregator` processes serve one task with a lease of one second; updates are appended to
its log all the while, as a bridge appends them. At a seeded moment the holder gets SIGKILL, or, in
every other trial, SIGSTOP. The time runs from the signal until the other one's first commit is in
Redis (checkpoint's serial above the last one of the old holder). Then a new second process is
started, or the old one goes on (SIGCONT) and must find out that it holds nothing any more.

In the end exactly the updates that were sent must have been folded: none lost, none twice.
"""

import asyncio
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
from redis import Redis

from aggregator.sharing import preferred
from aggregator.tasks import create_task
from benchmarks.ingest import new_update
from benchmarks.report import Aim, Arguments, Report, generator, progress, run
from benchmarks.servers import fedmq
from redis_session.connection import connect
from schemas.codecs import CodecOptions
from schemas.keys import AGGREGATORS, TaskKeys
from schemas.log import Arrived, to_fields
from schemas.names import DeviceId, TaskName, shard_of
from schemas.params import Params, ParamSpec, TensorSpec, base_digest, model_digest
from schemas.strategy import StrategyOptions
from schemas.task import TaskSpec
from tests.servers import HOST, redis_server

TASK: Final = TaskName("bench")
LEASE_S: Final = 1.0
DEVICES: Final = 20
SIZE: Final = 44
UPDATE_EVERY_S: Final = 0.005
LOOK_EVERY_S: Final = 0.002
PATIENCE_S: Final = 60.0

SIGNALS: Final = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}


class Feeder:
    """Appends an update to the log again and again, from a thread of its own."""

    def __init__(self, port: int, spec: TaskSpec, initial: Params, seed: int) -> None:
        self.sent = 0
        self._port = port
        self._spec = spec
        self._base = base_digest(model_digest(spec.params.digest, initial))
        self._rng = generator(seed)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, when the update in hand is in the log."""
        self._done.set()
        self._thread.join()

    def _feed(self) -> None:
        log = TaskKeys(TASK).log
        with Redis(HOST, self._port) as redis:
            while not self._done.wait(UPDATE_EVERY_S):
                device = DeviceId(f"device-{self.sent % DEVICES:02d}")
                seq = self.sent // DEVICES + 1
                data = new_update(self._spec, self._base, seq, self._rng)
                fields: Any = to_fields(Arrived(device, shard_of(device), data, len(data)))
                redis.xadd(log, fields)
                self.sent += 1


@dataclass(slots=True)
class Pair:
    """The two aggregators, by their tokens."""

    folder: Path
    redis: Redis
    stack: ExitStack
    started: int = 0
    pids: dict[str, int] = field(default_factory=dict)

    def complete(self) -> None:
        """Start aggregators until there are two; wait until they know of each other."""
        while len(self.pids) < 2:
            folder = self.folder / str(self.started)
            folder.mkdir()
            self.started += 1
            url = f"redis://{HOST}:{self.redis.connection_pool.connection_kwargs['port']}/0"
            command = ("aggregator", "--redis-url", url, "--lease-s", str(LEASE_S))
            pid = self.stack.enter_context(fedmq(folder, *command))
            (token,) = until(lambda: self.alive() - self.pids.keys())
            self.pids[token] = pid

    def alive(self) -> set[str]:
        """Tokens of those that have said that they are alive."""
        members: Any = self.redis.zrange(AGGREGATORS, 0, -1)
        return {member.decode().partition(" ")[0] for member in members}

    def holder(self) -> str:
        """The token of the one that holds the task, when that is whose share it is; or nothing."""
        token, serial = look(self.redis)
        settled = serial and self.alive() == self.pids.keys()
        return token if settled and token == preferred(TASK, self.pids) else ""


def look(redis: Redis) -> tuple[str, int]:
    """Who holds the task, and the serial of the last commit: of one moment."""
    keys = TaskKeys(TASK)
    pipe = redis.pipeline(transaction=True)
    pipe.get(keys.holder)
    pipe.hget(keys.checkpoint, "serial")
    holder, serial = pipe.execute()
    return (holder or b"").decode(), int(serial or 0)


def until(found: Callable[[], Any]) -> Any:
    """Ask until there is an answer."""
    end = time.monotonic() + PATIENCE_S
    while not (answer := found()):
        if time.monotonic() > end:
            raise TimeoutError(f"nothing came within {PATIENCE_S:.0f} s")
        time.sleep(LOOK_EVERY_S)
    return answer


def measure(arguments: Arguments) -> Report:
    """Let the holder die, and hang, again and again."""
    trials = 4 if arguments.quick else 15
    rng = generator(arguments.seed)
    spec = TaskSpec(
        ParamSpec((TensorSpec("w", (SIZE,)),)),
        strategy=StrategyOptions(max_staleness=65_535, flush_after_s=0.0),
        codec=CodecOptions(name="float32"),
    )
    initial = rng.standard_normal(SIZE, dtype=np.float32)
    times: dict[str, list[float]] = {name: [] for name in SIGNALS}
    with (
        tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder,
        redis_server(Path(folder)) as server,
        Redis(HOST, server.port) as redis,
        ExitStack() as stack,
    ):
        asyncio.run(_create(server.port, spec, initial))
        feeder = Feeder(server.port, spec, initial, arguments.seed)
        feeder.start()
        pair = Pair(Path(folder), redis, stack)
        try:
            for number in range(trials):
                for name, what in SIGNALS.items():
                    times[name].append(_trial(pair, what, rng) / LEASE_S)
                told = ", ".join(f"{name} {each[-1]:.2f}" for name, each in times.items())
                progress(f"{number + 1} of {trials}: {told} leases")
        finally:
            feeder.stop()
        counts = _counts(redis, feeder.sent)
    return _report(times, counts, trials)


async def _create(port: int, spec: TaskSpec, initial: Params) -> None:
    async with connect(f"redis://{HOST}:{port}/0") as redis:
        await create_task(redis, TASK, spec, initial, epoch=1)


def _trial(pair: Pair, what: signal.Signals, rng: np.random.Generator) -> float:
    """Seconds from the signal until the other one has committed."""
    pair.complete()
    old = until(pair.holder)
    time.sleep(rng.uniform(0, 2 * LEASE_S))
    old = until(pair.holder)
    before = 0

    def taken_over() -> bool:
        nonlocal before
        holder, serial = look(pair.redis)
        if holder in {old, ""}:
            before = serial
            return False
        return serial > before

    began = time.monotonic()
    os.kill(pair.pids[old], what)
    until(taken_over)
    seconds = time.monotonic() - began
    if what == signal.SIGSTOP:
        os.kill(pair.pids[old], signal.SIGCONT)
    else:
        del pair.pids[old]
        until(lambda: old not in pair.alive())
    return seconds


def _counts(redis: Redis, sent: int) -> dict[str, int]:
    """What became of all updates, once as many as were sent are folded, or never will be."""
    key = TaskKeys(TASK).metrics
    end = time.monotonic() + PATIENCE_S
    while True:
        metrics = msgspec.json.decode(redis.get(key) or b"{}")
        if metrics["updates_folded"] >= sent or time.monotonic() > end:
            break
        time.sleep(0.05)
    time.sleep(1.0)  # whoever would fold one twice has had the time
    metrics = msgspec.json.decode(redis.get(key) or b"{}")
    return {
        "sent": sent,
        "folded": metrics["updates_folded"],
        "duplicates": metrics["duplicates_dropped"],
        "rejected": sum(metrics["updates_rejected"].values()),
    }


def _report(times: dict[str, list[float]], counts: dict[str, int], trials: int) -> Report:
    report = Report("takeover", trials)
    for name, each in times.items():
        report.figures |= {
            f"{name}: median, leases": median(each),
            f"{name}: p90, leases": float(np.percentile(each, 90)),
            f"{name}: max, leases": max(each),
        }
        report.aims.append(
            Aim(f"{name}: until the other's first commit", median(each), at_most=1.5)
        )
    report.figures |= {f"updates {what}": count for what, count in counts.items()}
    wrong = abs(counts["folded"] - counts["sent"]) + counts["duplicates"] + counts["rejected"]
    report.aims.append(Aim("updates lost, twice or refused", wrong, at_most=0))
    report.notes = [
        f"a lease of {LEASE_S:g} s; {trials} trials a signal; the holder is the preferred one",
        f"an update every {UPDATE_EVERY_S * 1000:.0f} ms; looked at every 2 ms; appendfsync always",
    ]
    return report


if __name__ == "__main__":
    sys.exit(run("takeover", "How long a task stands still when its holder dies.", measure))
