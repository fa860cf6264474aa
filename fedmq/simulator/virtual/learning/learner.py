"""Put data, partition, training and attack together: what the simulator asks of a model.

Jobs are trained as one stack (`batched`), or one by one by a production Trainer of the user's. What
a job comes to depends on the job, the seed and the options alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    Order,
    mean_loss,
    order_of,
    scores,
    train_stack,
)
from fedmq.simulator.virtual.learning.data_options import DataOptions
from fedmq.simulator.virtual.learning.partitions import ATTACK, DEAL, TRAIN, TUNE, generator
from fedmq.simulator.virtual.learning.personal import Pupil, accuracies, kept
from fedmq.simulator.virtual.learning.share import Rows, Share, drifted, period_s
from fedmq.simulator.virtual.learning.worlds import World, world_of
from schemas.errors import ConfigError
from schemas.initial import glorot, mlp_shapes
from schemas.params import Params, ParamSpec, TensorSpec, flatten, unflatten
from schemas.task import PersonalOptions, TrainOptions

SAMPLE: Final = 100
"""So many devices are asked what they make of the model for themselves."""

_FIRST_MODEL: Final = 1 << 40
"""A number that no device has: the first model's chance."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """Where a round has led; `metrics` as a user's trainer tells them, None: they are measured."""

    params: Params
    metrics: Mapping[str, float] | None = None


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
        orders = [self._order(job, len(share)) for job, share in zip(jobs, shares, strict=True)]
        ends = list(self._ends(jobs, shares, orders))
        little: dict[tuple[int, float], Params] = {}
        found = []
        for job, ended, share, order in zip(jobs, ends, shares, orders, strict=True):
            with np.errstate(over="ignore", invalid="ignore"):  # who diverges sends nothing
                delta = ended.params - job.base
                if attacks(self.attack, self.devices, job.device, self.seed):
                    delta = self._pretended(job, delta, little)
                loss = mean_loss(scores(self.spec, job.base, share.features), share.targets)
                told = ended.metrics
                if told is None:
                    told = {"loss_before": loss} | self._measured(ended.params, share)
            found.append(Trained(delta, len(share), loss, len(order), told))
        return found

    def guide(self, params: Params, number: int) -> Params | None:
        """The server's own step from a model, by its root examples; None: it has none.

        Args:
            params: the model.
            number: of the version: what makes the chance.
        """
        root = self.world.root
        if root is None:
            return None
        order = order_of(len(root), self.how, generator(self.seed, TRAIN, _FIRST_MODEL, number))
        ended: Params = train_stack(self.spec, [Lesson(params, root, order)], self.how)[0]
        return ended - params

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

        Nothing of a regression, of devices that hold nothing out, and where the task asks for no
        personal model: then all is trained on.
        """
        options = self.train_options.personal
        if self.world.regression or options.method == "none":
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
        first = self.initial()
        with np.errstate(over="ignore", invalid="ignore"):  # who diverges answers at random
            found = accuracies(self.spec, first, params, pupils, how=self.how, options=options)
        return Personal(found)

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
        lies = self.attack.kind == "label-flip" and attacks(
            self.attack, self.devices, job.device, self.seed
        )
        return flipped(share) if lies else share

    def _order(self, job: Job, count: int) -> Order:
        rng = generator(self.seed, TRAIN, job.device, job.number)
        steps = job.steps or min(self.steps_of(job.device), self.train_options.steps)
        return order_of(count, self.how, rng, steps)

    def _ends(
        self, jobs: Sequence[Job], shares: Sequence[Share], orders: Sequence[Order]
    ) -> Iterable[_Ended]:
        """What honest training makes of the jobs."""
        taught = [self._taught(job, share) for job, share in zip(jobs, shares, strict=True)]
        if self.trainer is not None:
            each = zip(jobs, taught, orders, strict=True)
            return [self._by_user(job, share, len(order)) for job, share, order in each]
        lessons = [
            Lesson(job.base, share, order)
            for job, share, order in zip(jobs, taught, orders, strict=True)
        ]
        return [_Ended(params) for params in train_stack(self.spec, lessons, self.how)]

    def _measured(self, params: Params, share: Share) -> dict[str, float]:
        """What production's trainers measure of a round's end, on what they were trained on."""
        answers = scores(self.spec, params, share.features)
        told = {"loss_after": mean_loss(answers, share.targets)}
        return told if self.world.regression else told | {"accuracy": _accuracy(answers, share)}

    def _by_user(self, job: Job, share: Share, steps: int) -> _Ended:
        """The user's Trainer, made for this round; NaN where it finds that training diverged.

        It hears of no clock: how long a round may last has become steps already.
        """
        epochs = -(-steps * self.how.batch_size // len(share))
        options = msgspec.structs.replace(
            self.train_options,
            steps=steps,
            epochs=max(epochs, self.how.epochs),
            seconds=0.0,
            joules=0.0,
            personal=PersonalOptions(),
        )
        trainer = self.trainer(share.features, share.targets.argmax(axis=1))
        tensors = unflatten(self.spec, job.base.copy())
        rng = generator(self.seed, TRAIN, job.device, job.number)
        try:
            result = trainer.train(tensors, options, rng)
        except ValueError:  # as on a device: this round comes to nothing
            return _Ended(np.full(self.spec.size, np.nan, dtype=np.float32), {})
        try:
            return _Ended(flatten(self.spec, result.tensors), result.metrics)
        except ValueError as exc:
            raise ConfigError("data.trainer", str(exc)) from exc

    # -- attackers -------------------------------------------------------------------------

    def _pretended(
        self, job: Job, delta: Params, little: dict[tuple[int, float], Params]
    ) -> Params:
        """What an attacker sends; `little` remembers ALIE's vectors, by base and time."""
        if self.attack.kind != "alie":
            rng = generator(self.seed, ATTACK, job.device, job.number)
            return pretended(self.attack, delta, rng)
        key = id(job.base), period_s(self.data, job.at_s)  # the jobs keep their bases alive
        if key not in little:
            little[key] = self._little(job.base, key[1])
        return little[key].copy()

    def _little(self, base: Params, at_s: float) -> Params:
        """ALIE's vector for a base: from what the colluders would honestly send from it."""
        jobs = [Job(device, 0, base, at_s) for device in self.colluding]
        shares = [self._share(job) for job in jobs]
        orders = [self._order(job, len(share)) for job, share in zip(jobs, shares, strict=True)]
        ends = [ended.params for ended in self._ends(jobs, shares, orders)]
        return a_little(np.stack(ends) - base, self.attack.z)


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
    if (how.optimizer != "sgd" or how.clip) and not data.trainer:
        remedy = "adam and clip are not simulated with the built-in network: name a [data] trainer"
        raise ConfigError("task.train.options", remedy)
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
