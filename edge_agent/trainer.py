"""What a user supplies: a Trainer. Numpy in, numpy out; the data never leaves it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from schemas.bundle import Bundle
from schemas.evaluation import Evaluation
from schemas.inputs import InputOptions
from schemas.task import TrainOptions


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of some local training.

    Attributes:
        tensors: the new parameters, by the names and shapes that came in, any real dtype.
        num_examples: examples in one local epoch, at least 1.
        metrics: what is worth telling the server, at most 16 finite floats; not the data.
        contributions: of how many devices this is made: 1, but of a regional server, whose model
            has moved by the mean of so many weighted deltas.
        weight: their mean weight, above 0 and at most 1; a float32 travels.

    Raises:
        ValueError: contributions or weight out of range.
    """

    tensors: Mapping[str, NDArray[np.generic]]
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    contributions: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what the server could not fold."""
        if not 1 <= self.contributions < 1 << 32:
            raise ValueError(f"contributions are {self.contributions}: at least 1 is needed")
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight is {self.weight}: choose above 0 and at most 1")


class Stopped(Exception):  # noqa: N818 - no error: what a trainer that was told to stop raises
    """The training was told to stop: nothing comes of it now."""


class Trainer(Protocol):
    """Trains on this device's own data.

    `fedmq-agent --trainer module:Class` calls `Class(**options)` once, with the options of its
    own configuration, then `train` for every round, in a worker thread. More methods are asked for
    when they are there: `evaluate` (see `Evaluator`), `take_bundle` (see `Bundled`),
    `new_samples() -> int`, the number of examples that have come since the last training,
    `lacks() -> str`, what must come before it can train, a sentence, or empty, and `stop()`.

    `stop` is called from another thread, more than once, when the agent is to end: what runs then
    should raise `Stopped` soon, after a step, say; what is begun later is not meant. A trainer that
    heeds it not, or has none, is given 5 s to end its round: then the agent ends without it.

    What `options.personal` asks for is a trainer's own affair: only what `train` returns is sent.
    The built-in ones obey it, and give what came of it to whoever made them (`personal`).
    """

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: "np.random.Generator",
    ) -> TrainResult:
        """Train from `tensors` (read-only float32 views) and return the new parameters.

        Args:
            tensors: the parameters to start from, named and shaped as the task says.
            options: what the task asks for.
            rng: the only source of randomness, so that a run can be repeated.
        """
        ...


@runtime_checkable
class Evaluator(Protocol):
    """A Trainer that can tell how good the global model is, on held-out data of this device."""

    def evaluate(self, tensors: Mapping[str, NDArray[np.float32]]) -> Evaluation | None:
        """Measure named tensors (read-only float32 views): figures by name, such as `accuracy`.

        Only sums over the fleet leave the server; at most 15 figures, names of up to 31
        characters. None: this device holds nothing out.
        """
        ...


@runtime_checkable
class Bundled(Protocol):
    """A Trainer that trains with the graphs of the task's bundle (`schemas.bundle`)."""

    def take_bundle(self, bundle: Bundle, given: InputOptions) -> None:
        """Train with this from now on; called in a worker thread, before training, when it is new.

        It was read and checked. A ValueError's sentence is told, and it is called again later.

        Args:
            bundle: the graphs and their ports.
            given: the task's [input].
        """
        ...
