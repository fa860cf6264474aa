"""Many runs in two processes, paired by seed; and what may be said of their differences."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite, sqrt
from multiprocessing import get_context
from statistics import fmean, stdev
from typing import Final, Literal, TypeAlias

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.learning.datasets import World, digits_world, turbofan_world
from benchmarks.learning.downlink import Downlink, Plain, Walked
from benchmarks.learning.fleet import STRATEGY, Outcome, Setting, Way, run
from benchmarks.learning.models import Steps, cnn, mlp
from benchmarks.learning.timeline import Faults
from benchmarks.report import progress

PROCESSES: Final = 2

Model: TypeAlias = Literal["small", "big", "cnn", "turbofan"]

NO_FAULTS: Final = Faults()

_T95: Final = {1: 6.314, 2: 2.920, 3: 2.353, 4: 2.132, 5: 2.015, 6: 1.943, 7: 1.895, 8: 1.860}
_T95_MORE: Final = {9: 1.833, 10: 1.812, 11: 1.796, 12: 1.782, 13: 1.771, 14: 1.761}
_T: Final = _T95 | _T95_MORE
"""Student's t below which 95 % lie, by degrees of freedom."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run that a process makes.

    Attributes:
        model: which study.
        way: how updates go up.
        seed: of everything drawn.
        faults: what happens to updates.
        lattice: models come down on the lattice instead of as float32.
        uploads: how many; 0: as the study says.
    """

    model: Model
    way: Way
    seed: int
    faults: Faults = NO_FAULTS
    lattice: bool = False
    uploads: int = 0


def setting_of(model: Model) -> Setting:
    """The study's numbers: 20 devices and K = 5; 100 engines that mostly sleep, K = 10."""
    match model:
        case "small":
            return Setting(mlp(64, (128,), 10), Steps(0.2), 1500)
        case "big":
            return Setting(mlp(64, (256, 256, 64), 10), Steps(0.1), 1000)
        case "cnn":
            return Setting(cnn(), Steps(0.1), 1000)
        case "turbofan":
            ten = msgspec.structs.replace(STRATEGY, buffer_size=10)
            return Setting(mlp(420, (32, 16), 1, 125.0), Steps(0.1, epochs=1), 4000, ten, awake=0.2)


@lru_cache(maxsize=4)
def world_of(model: Model, seed: int) -> World:
    """The data of a seed: digits are dealt anew for each, engines are as they are."""
    if model == "turbofan":
        return _engines()
    return digits_world(np.random.Generator(np.random.PCG64([seed, 0])))


@lru_cache(maxsize=1)
def _engines() -> World:
    return turbofan_world()


def outcome(job: Job) -> Outcome:
    """Make one run, with one thread: the matrices are too small for more."""
    setting = setting_of(job.model)
    setting = replace(setting, uploads=job.uploads or setting.uploads)
    downlink: Downlink = Walked(setting.network.spec) if job.lattice else Plain()
    world = world_of(job.model, job.seed)
    with threadpool_limits(1, "blas"):
        return run(setting, job.way, world, job.seed, faults=job.faults, downlink=downlink)


def outcomes(jobs: Sequence[Job]) -> dict[Job, Outcome]:
    """Make all runs, each once, in PROCESSES processes."""
    unique = list(dict.fromkeys(jobs))
    found: dict[Job, Outcome] = {}
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(outcome, job): job for job in unique}
        for ready in as_completed(waiting):
            job = waiting[ready]
            found[job] = ready.result()
            if len(found) % 15 == 0 or len(found) == len(unique):
                progress(f"{len(found)} of {len(unique)} runs; last: {job.model}, {job.way}")
    return found


@dataclass(frozen=True, slots=True)
class Paired:
    """The mean of paired differences, and the bound that 95 % of such means keep below."""

    mean: float
    upper: float


def paired(worse: Sequence[float], better: Sequence[float]) -> Paired:
    """By how much `worse` exceeds `better`, pair by pair (one-sided, Student's t)."""
    gaps = [w - b for w, b in zip(worse, better, strict=True)]
    mean = fmean(gaps)
    if len(gaps) < 2 or not all(map(isfinite, gaps)):
        return Paired(mean, mean)
    freedom = len(gaps) - 1
    return Paired(mean, mean + _T.get(freedom, 1.7) * stdev(gaps) / sqrt(len(gaps)))
