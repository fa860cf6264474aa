"""Put data, partition, training and attack together: what the simulator asks of a model.

Jobs are trained as one stack (`batched`), or one by one by a production Trainer of the user's. What
a job comes to depends on the job, the seed and the options alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec
import numpy as np

from edge_agent.importing import imported
from edge_agent.trainers.sgd import Descent, descent_of
from fedmq.simulator.virtual.learner import Job, Personal, Trained
from fedmq.simulator.virtual.learning.attack_options import AttackOptions
from fedmq.simulator.virtual.learning.attacks import (
    a_little,
    attacks,
    colluders,
    flipped,
    pretended,
)
from fedmq.simulator.virtual.learning.batched import (
    Lesson,
    Matrix,
    mean_loss,
    order_of,
    scores,
    train_stack,
)
from fedmq.simulator.virtual.learning.data_options import DataOptions
from fedmq.simulator.virtual.learning.partitions import ATTACK, DEAL, TRAIN, TUNE, generator
from fedmq.simulator.virtual.learning.personal import Pupil, accuracies, kept
from fedmq.simulator.virtual.learning.share import Rows, Share, drifted
from fedmq.simulator.virtual.learning.worlds import World, world_of
from schemas.errors import ConfigError
from schemas.initial import glorot, mlp_shapes
from schemas.params import Params, ParamSpec, TensorSpec, flatten, unflatten
from schemas.task import TrainOptions

SAMPLE: Final = 100
"""So many devices are asked what they make of the model for themselves."""

_FIRST_MODEL: Final = 1 << 40
"""A number that no device has: the first model's chance."""


@dataclass(frozen=True, slots=True)
class NetworkLearner:
    """A ReLU network on shares of a world. See `learner_of`."""

    world: World
    spec: ParamSpec
    data: DataOptions
    attack: AttackOptions
    train_options: TrainOptions
    how: Descent
    devices: int
    seed: int
    colluding: list[int]
    trainer: Any = None

    def initial(self) -> Params:
        """Glorot, by the seed."""
        return glorot(self.spec, generator(self.seed, DEAL, _FIRST_MODEL))

    def label_of(self, device: int) -> int:
        """The class that most of a device's examples are of; of a regression 0."""
        return int(self.world.share(device).targets.sum(axis=0).argmax())

    def steps_of(self, device: int) -> int:
        """Local steps of one round, by epochs and train.steps."""
        examples = len(self._kept(self.world.rows(device)))
        steps = -(-examples // self.how.batch_size) * self.how.epochs
        return min(steps, self.train_options.steps or steps)

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        """See `Learner.train`."""
        shares = [self._share(job) for job in jobs]
        losses = [self._loss(job.base, s) for job, s in zip(jobs, shares, strict=True)]
        taught = [self._taught(job, s) for job, s in zip(jobs, shares, strict=True)]
        orders = [self._order(job, len(s)) for job, s in zip(jobs, taught, strict=True)]
        if self.trainer is None:
            lessons = [
                Lesson(job.base, s, order)
                for job, s, order in zip(jobs, taught, orders, strict=True)
            ]
            ends = train_stack(self.spec, lessons, self.how)
        else:
            ends = np.stack([self._by_user(job, s) for job, s in zip(jobs, taught, strict=True)])
        little = lru_cache(maxsize=None)(self._little)
        bases = {id(job.base): job.base for job in jobs}
        found = []
        for job, end, share, loss, order in zip(jobs, ends, shares, losses, orders, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):  # who diverges sends nothing
                delta = end - job.base
                if attacks(self.attack, job.device, self.seed):
                    delta = self._pretended(job, delta, bases, little)
            found.append(Trained(delta, len(share), loss, len(order)))
        return found

    def evaluate(self, params: Params, *, at_s: float = 0.0) -> Mapping[str, float]:
        """`accuracy` and `loss`, or `rmse` in the target's units, on what nobody has seen.

        Args:
            params: the model.
            at_s: when: where labels drift, those of that moment are asked for.
        """
        whole = self.world.held_out
        held = drifted(whole, np.arange(len(whole)), self.data, at_s)
        with np.errstate(over="ignore", invalid="ignore"):
            answers = scores(self.spec, params, held.features)
            if self.world.regression:
                error = np.clip(answers, 0, 1).astype(np.float64) - held.targets
                return {"rmse": self.world.unit * float(np.sqrt(np.mean(error**2)))}
            loss = mean_loss(answers, held.targets)
        return {"accuracy": _accuracy(answers, held), "loss": loss}

    def personal(self, params: Params, *, at_s: float = 0.0) -> Personal:
        """What SAMPLE devices would make of a model: see `personal.accuracies`.

        Nothing of a regression, and of devices that hold nothing out.
        """
        if self.world.regression:
            return Personal()
        rng = generator(self.seed, TUNE)
        asked = (
            rng.permutation(self.devices)[:SAMPLE]
            if self.devices <= SAMPLE
            else np.unique(rng.integers(self.devices, size=SAMPLE))
        )
        pupils = []
        for device in map(int, asked):
            whole, mask = self._all(device, at_s), kept(self.world.rows(device))
            if not mask.all():
                chance = generator(self.seed, TUNE, device)
                pupils.append(Pupil(whole.take(mask), whole.take(~mask), chance))
        if not pupils:
            return Personal()
        options = self.train_options.personal
        with np.errstate(over="ignore", invalid="ignore"):
            return Personal(accuracies(self.spec, params, pupils, self.how, options))

    # -- one job ---------------------------------------------------------------------------

    def _kept(self, rows: Rows) -> Rows:
        """What of a device's examples is trained on, where devices hold out some: places."""
        if self.train_options.personal.method == "none":
            return np.arange(len(rows))
        return np.flatnonzero(kept(rows))

    def _all(self, device: int, at_s: float) -> Share:
        return drifted(self.world.share(device), self.world.rows(device), self.data, at_s)

    def _share(self, job: Job) -> Share:
        whole = self._all(job.device, job.at_s)
        return whole.take(self._kept(self.world.rows(job.device)))

    def _taught(self, job: Job, share: Share) -> Share:
        """What it trains on: a label-flipper's labels are wrong."""
        lies = self.attack.kind == "label-flip" and attacks(self.attack, job.device, self.seed)
        return flipped(share) if lies else share

    def _loss(self, base: Params, share: Share) -> float:
        with np.errstate(over="ignore", invalid="ignore"):
            return mean_loss(scores(self.spec, base, share.features), share.targets)

    def _order(self, job: Job, count: int) -> "np.ndarray[Any, np.dtype[np.int64]]":
        rng = generator(self.seed, TRAIN, job.device, job.number)
        steps = job.steps or min(self.steps_of(job.device), self.train_options.steps)
        return order_of(count, self.how, rng, steps)

    def _by_user(self, job: Job, share: Share) -> Params:
        """The user's Trainer, made for this round."""
        labels = share.targets.argmax(axis=1)
        rng = generator(self.seed, TRAIN, job.device, job.number)
        options = msgspec.structs.replace(
            self.train_options, steps=job.steps or self.train_options.steps
        )
        tensors = unflatten(self.spec, job.base.copy())
        result = self.trainer(share.features, labels).train(tensors, options, rng)
        return flatten(self.spec, result.tensors)

    # -- attackers -------------------------------------------------------------------------

    def _pretended(self, job: Job, delta: Params, bases: dict[int, Params], little: Any) -> Params:
        if self.attack.kind == "alie":
            at_s = job.at_s if self.data.drift_classes else 0.0
            vector: Params = little(_Base(id(job.base), bases), at_s)
            return vector.copy()
        rng = generator(self.seed, ATTACK, job.device, job.number)
        return pretended(self.attack, delta, rng)

    def _little(self, base: "_Base", at_s: float) -> Params:
        """ALIE's vector for a base: what the colluders would honestly send from it."""
        model = base.bases[base.key]
        jobs = [Job(d, 0, model, at_s) for d in self.colluding]
        shares = [self._share(job) for job in jobs]
        lessons = [
            Lesson(model, share, self._order(job, len(share)))
            for job, share in zip(jobs, shares, strict=True)
        ]
        ends: Matrix = train_stack(self.spec, lessons, self.how)
        return a_little(ends - model, self.attack.z)


class _Base:
    """A base as the key of a cache, by identity."""

    __slots__ = ("bases", "key")

    def __init__(self, key: int, bases: dict[int, Params]) -> None:
        self.key = key
        self.bases = bases

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Base) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)


def learner_of(
    data: DataOptions, attack: AttackOptions, train: TrainOptions, *, devices: int, seed: int
) -> NetworkLearner:
    """Read the data and deal it. Raises ConfigError.

    Args:
        data: what devices know.
        attack: who cheats.
        train: the task's local training.
        devices: how many there are.
        seed: of data, batches and attackers.
    """
    try:
        how = descent_of(train)
    except ValueError as exc:
        raise ConfigError("task.train.options", str(exc)) from exc
    world = world_of(data, devices, seed)
    outputs = world.held_out.targets.shape[1]
    shapes = mlp_shapes(world.held_out.features.shape[1], data.hidden, outputs)
    spec = ParamSpec(tuple(TensorSpec(name, shape) for name, shape in shapes.items()))
    trainer = imported("data.trainer", data.trainer) if data.trainer else None
    if trainer is not None and world.regression:
        raise ConfigError("data.trainer", "takes classes, which these data have not: leave it out")
    among = colluders(attack, devices, seed) if attack.kind == "alie" else []
    return NetworkLearner(world, spec, data, attack, train, how, devices, seed, among, trainer)


def _accuracy(answers: Matrix, share: Share) -> float:
    return float(np.mean(answers.argmax(axis=1) == share.targets.argmax(axis=1)))
