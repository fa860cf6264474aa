"""Many simulated runs, in as many processes as there are cores to pay for."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, Final

import msgspec
from threadpoolctl import threadpool_limits

from benchmarks.report import progress
from fedmq.simulator.virtual.engine import run
from fedmq.simulator.virtual.fleet_file import FleetFile, checked_fleet
from fedmq.simulator.virtual.learning.learner import learner_of
from fedmq.simulator.virtual.outcome import Outcome
from schemas.task import convert

PROCESSES: Final = 2


def fleet(tables: Mapping[str, Any]) -> FleetFile:
    """A fleet from its tables. Raises ConfigError."""
    return checked_fleet(convert(dict(tables), FleetFile))


def outcome(given: FleetFile) -> Outcome:
    """One run, with one thread: the matrices are too small for more."""
    train, seed = given.task.train, given.seed
    learner = learner_of(given.data, given.attack, train, devices=given.devices, seed=seed)
    with threadpool_limits(1, "blas"):
        return run(given, learner, lambda _progress: None)


def outcomes(fleets: Sequence[FleetFile]) -> list[Outcome]:
    """All runs, in the order of the fleets."""
    found: dict[int, Outcome] = {}
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        packed = [msgspec.json.encode(given) for given in fleets]
        waiting = {pool.submit(_packed, each): i for i, each in enumerate(packed)}
        for ready in as_completed(waiting):
            found[waiting[ready]] = msgspec.json.decode(ready.result(), type=Outcome)
            if len(found) % 20 == 0 or len(found) == len(fleets):
                progress(f"{len(found)} of {len(fleets)} runs")
    return [found[i] for i in range(len(fleets))]


def _packed(given: bytes) -> bytes:
    return msgspec.json.encode(outcome(msgspec.json.decode(given, type=FleetFile)))
