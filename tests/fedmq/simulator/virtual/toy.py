"""A learner so small that what is tested is the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedmq.simulator.virtual.engine import run
from fedmq.simulator.virtual.fleet_file import FleetFile
from fedmq.simulator.virtual.learner import Job, Trained
from fedmq.simulator.virtual.outcome import Outcome
from schemas.codecs import CodecOptions
from schemas.log import Entry
from schemas.params import Params, ParamSpec, TensorSpec
from schemas.strategy import StrategyOptions
from schemas.task import TaskFile, convert

SIZE = 6
STEPS = 20


@dataclass
class Toy:
    """Devices pull the model to ones, each with some noise of its own."""

    seed: int = 0
    asked: set[int] = field(default_factory=set)
    batches: list[int] = field(default_factory=list)

    @property
    def spec(self) -> ParamSpec:
        return ParamSpec((TensorSpec("w", (SIZE,)),))

    def initial(self) -> Params:
        return np.zeros(SIZE, np.float32)

    def steps_of(self, device: int) -> int:
        self.asked.add(device)
        return STEPS

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        self.batches.append(len(jobs))
        return [self._one(job) for job in jobs]

    def _one(self, job: Job) -> Trained:
        rng = np.random.Generator(np.random.PCG64([self.seed, job.device, job.number]))
        target = 1.0 + 0.1 * rng.standard_normal(SIZE, dtype=np.float32)
        delta = (np.float32(0.3) * (target - job.base)).astype(np.float32)
        loss = float(np.mean((target - job.base) ** 2))
        told = {"loss_before": loss, "loss_after": 0.5 * loss, "accuracy": 0.5}
        return Trained(delta, 10, loss, job.steps or STEPS, told)

    def evaluate(self, params: Params, *, at_s: float = 0.0) -> Mapping[str, float]:
        loss = float(np.mean((params - 1.0) ** 2))
        return {"accuracy": max(0.0, 1.0 - loss), "loss": loss}


def task(**strategy: object) -> TaskFile:
    """FedBuff of float32 without deadlines, unless told otherwise."""
    plain = {"buffer_size": 5, "flush_after_s": 0.0} | strategy
    return TaskFile(strategy=convert(plain, StrategyOptions), codec=CodecOptions("float32"))


def fleet(tasks: TaskFile | None = None, **tables: object) -> FleetFile:
    """A fleet of 200; every keyword is a table or a value of the file."""
    plain: dict[str, object] = {"devices": 200, "stop": {"uploads": 200}}
    return convert(plain | tables | {"task": tasks or task()}, FleetFile)


def outcome(
    given: FleetFile, learner: Toy | None = None, log: list[Entry] | None = None
) -> Outcome:
    """Run it, unwatched."""
    return run(given, learner or Toy(given.seed), lambda _progress: None, log=log)
