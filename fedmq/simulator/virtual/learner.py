"""What the simulator needs of a model and its data: a learner trains jobs, many at once. Pure.

A job's result depends on the job alone, never on which others are trained beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from schemas.params import Params, ParamSpec


@dataclass(frozen=True, slots=True)
class Job:
    """One device trains once.

    Attributes:
        device: its number, from 0.
        number: how many times it trained before: with the seed and the device it makes the chance.
        base: the model it trains from, float32, shape (spec.size,), read-only.
        at_s: when, in virtual seconds: data may drift.
        steps: local steps to make; 0: as many as the task's epochs are.
    """

    device: int
    number: int
    base: Params
    at_s: float
    steps: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """What came of a job.

    Attributes:
        delta: `w_local - w_base`, float32, shape (spec.size,), a fresh array. An attacker's is
            already what it pretends.
        num_examples: of the device.
        loss: mean on the device's examples before it trained: what `utility` is made of.
        steps: local steps that were made.
        metrics: what the trainer tells the server of the round, as a device's does.
    """

    delta: Params
    num_examples: int
    loss: float
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Learner(Protocol):
    """A model, its data, and how they are dealt to a fleet."""

    @property
    def spec(self) -> ParamSpec:
        """Names, shapes and kinds of the tensors."""
        ...

    def initial(self) -> Params:
        """The model before the first update."""
        ...

    def steps_of(self, device: int) -> int:
        """Local steps of one round as the task says, without training: what takes the time."""
        ...

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        """Train all jobs, in one vectorised call where the model allows it; in their order."""
        ...

    def evaluate(self, params: Params, *, at_s: float) -> Mapping[str, float]:
        """Measure on held-out examples of a moment: `accuracy` in [0, 1] and `loss`, or `rmse`."""
        ...


@dataclass(frozen=True, slots=True)
class Personal:
    """What devices have made of the model for themselves, over a sample of the fleet.

    Attributes:
        figures: such as `accuracy_global`, `accuracy_personal`: means over devices of what each
            finds on its own held-out examples.
    """

    figures: Mapping[str, float] = field(default_factory=dict)
