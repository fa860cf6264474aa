"""Minibatch descent on one flat vector: SGD with momentum, or Adam. Knows nothing of networks.

    g <- grad(w; batch) min(1, clip / |grad(w; batch)|) + weight_decay w + prox (w - w_in)

sgd     v <- momentum v + g
        w <- w - learning_rate v

adam    m <- beta1 m + (1 - beta1) g           v <- beta2 v + (1 - beta2) g^2
        w <- w - learning_rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

Where parameters stand `still`, g is 0. `prox` is the mu of Li et al., "Federated Optimization in
Heterogeneous Networks", MLSys 2020, arXiv 1812.06127, equation 2; w_in are the parameters that came
in, or those that are given as `towards`. adam is Kingma and Ba, "Adam: A Method for Stochastic
Optimization", ICLR 2015, arXiv 1412.6980, Algorithm 1, and begins anew in every round. `clip`
bounds the norm of the whole gradient (Pascanu, Mikolov and Bengio, "On the Difficulty of Training
Recurrent Neural Networks", ICML 2013, Algorithm 1) before decay and pull are added; 0: no bound.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.params import Params
from schemas.task import TrainOptions

Enough: TypeAlias = Callable[[int], bool]
"""Told how many steps were made: whether it is time to stop."""

Gradient: TypeAlias = Callable[[Params, NDArray[np.int64]], Params]
"""(parameters, rows of the batch) -> a fresh vector, the gradient of the batch's mean loss."""

_SHARED: Final = ("weight_decay", "prox", "clip")
_OWN: Final = {"sgd": ("momentum",), "adam": ("beta1", "beta2", "epsilon")}
"""The options of each optimiser."""


@dataclass(frozen=True, slots=True)
class Descent:
    """How to go down.

    `momentum`, `beta1` and `beta2` in [0, 1); `weight_decay`, `prox` and `clip` at least 0;
    `epsilon` above 0; `optimizer` is `sgd` or `adam`.
    """

    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    prox: float = 0.0
    optimizer: str = "sgd"
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what could only diverge (ValueError)."""
        if self.optimizer not in _OWN:
            known = " or ".join(f'"{name}"' for name in _OWN)
            raise ValueError(f"train.options.optimizer is {self.optimizer!r}: choose {known}")
        for name in ("momentum", "beta1", "beta2"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"train.options.{name} is {value}: choose 0 <= {name} < 1")
        for name in _SHARED:
            value = getattr(self, name)
            if value < 0 or not isfinite(value):
                raise ValueError(f"train.options.{name} is {value}: choose a finite number >= 0")
        if not (isfinite(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"train.options.epsilon is {self.epsilon}: choose a number above 0")


@dataclass(slots=True)
class Position:
    """Where a descent stands after a step: all that it takes to go on from there.

    Attributes:
        params: float32, shape (size,).
        momentum: sgd's v, adam's m; as params.
        variance: adam's v, as params; None with sgd.
        steps: that were made.
        epoch: that is being made, from 0.
        taken: batches that were taken of this epoch.
        shuffled: the state of the generator before it shuffled this epoch.
    """

    params: Params
    momentum: Params
    variance: Params | None
    steps: int = 0
    epoch: int = 0
    taken: int = 0
    shuffled: dict[str, Any] = field(default_factory=dict)


def descent_of(options: TrainOptions) -> Descent:
    """Read what the task asks for. Raises ValueError on an option that would go unheard."""
    extra = dict(options.options)
    optimizer = str(extra.pop("optimizer", "sgd"))
    if optimizer not in _OWN:
        return Descent(optimizer=optimizer)  # which refuses it
    known = (*_OWN[optimizer], *_SHARED)
    unknown = set(extra) - set(known)
    if unknown:
        remedy = f"with {optimizer} this trainer knows {', '.join(known)}"
        raise ValueError(f"train.options.{min(unknown)} is unknown: {remedy}")
    for name, value in extra.items():
        if isinstance(value, bool | str):
            raise ValueError(  # noqa: TRY004 - the task's value is wrong, not a caller's type
                f"train.options.{name} is {value!r}: a number is needed"
            )
    numbers: dict[str, Any] = {name: float(value) for name, value in extra.items()}
    return Descent(
        options.epochs, options.batch_size, options.learning_rate, optimizer=optimizer, **numbers
    )


def batches(count: int, batch_size: int, rng: "np.random.Generator") -> Iterator[NDArray[np.int64]]:
    """One epoch: every row once, shuffled; the last batch may be smaller."""
    rows = rng.permutation(count)
    for start in range(0, count, batch_size):
        yield rows[start : start + batch_size]


def descend(
    start: Params,
    gradient: Gradient,
    count: int,
    how: Descent,
    rng: "np.random.Generator",
    *,
    enough: Enough = lambda _steps: False,
    towards: Params | None = None,
    still: NDArray[np.bool_] | None = None,
    begun: Position | None = None,
    after: Callable[[Position], None] = lambda _position: None,
) -> Params:
    """Go down from `start` over `count` examples; returns a fresh vector.

    At least one step is made, and none after `enough` has said so.

    Args:
        start: float32, shape (size,); not written to.
        gradient: of a batch's mean loss.
        count: examples there are.
        how: the options.
        rng: shuffles the examples.
        enough: when to stop early.
        towards: where `prox` pulls, shape (size,); None: to `start`.
        still: which parameters do not move, shape (size,); None: all move.
        begun: where a descent of the same arguments was cut off: it goes on from there, with the
            generator that it had, and ends with the same bits. It is used up. None: from `start`.
        after: told of every step. It may copy what it is shown, and write the parameters that
            stand still (BatchNorm's statistics); nothing else.
    """
    at = begun or _at(start, how)
    centre = start if towards is None else towards
    step = _adam if how.optimizer == "adam" else _sgd
    while at.epoch < how.epochs:
        if at.taken:
            rng.bit_generator.state = at.shuffled
        at.shuffled = dict(rng.bit_generator.state)
        for number, rows in enumerate(batches(count, how.batch_size, rng)):
            if number < at.taken:
                continue
            if at.steps and enough(at.steps):
                return at.params
            at.steps += 1
            at.taken += 1
            slope = gradient(at.params, rows)
            if how.clip:
                _clip(slope, how.clip, still)
            if how.weight_decay or how.prox:
                slope += how.weight_decay * at.params + how.prox * (at.params - centre)
            if still is not None:
                slope[still] = 0
            step(at, slope, how)
            after(at)
        at.epoch, at.taken = at.epoch + 1, 0
    return at.params


def _at(start: Params, how: Descent) -> Position:
    variance = np.zeros_like(start) if how.optimizer == "adam" else None
    return Position(start.copy(), np.zeros_like(start), variance)


def _clip(slope: Params, most: float, still: NDArray[np.bool_] | None) -> None:
    """Scale the gradient of what moves, in place, to a Euclidean norm of `most` at most."""
    if still is not None:
        slope[still] = 0
    norm = sqrt(float(np.sum(np.square(slope, dtype=np.float64))))
    if norm > most:
        slope *= most / norm


def _sgd(at: Position, slope: Params, how: Descent) -> None:
    at.momentum *= how.momentum
    at.momentum += slope
    at.params -= how.learning_rate * at.momentum


def _adam(at: Position, slope: Params, how: Descent) -> None:
    """One step in place; `slope` is used up."""
    variance = at.variance
    if variance is None:
        raise ValueError("a descent with sgd was begun: it cannot go on with adam")
    unbiased1, unbiased2 = 1 - how.beta1**at.steps, 1 - how.beta2**at.steps
    at.momentum *= how.beta1
    at.momentum += (1 - how.beta1) * slope
    np.square(slope, out=slope)
    slope *= 1 - how.beta2
    variance *= how.beta2
    variance += slope
    np.divide(variance, unbiased2, out=slope)
    np.sqrt(slope, out=slope)
    slope += how.epsilon
    np.divide(at.momentum, slope, out=slope)
    slope *= how.learning_rate / unbiased1
    at.params -= slope
