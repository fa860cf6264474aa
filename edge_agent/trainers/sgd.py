"""Minibatch SGD on one flat vector, with momentum, weight decay and FedProx' pull.

    g <- grad(w; batch) + weight_decay w + prox (w - w_in)
    v <- momentum v + g
    w <- w - learning_rate v

Where parameters stand `still`, g is 0. `prox` is the mu of Li et al., "Federated Optimization in
Heterogeneous Networks", MLSys 2020, arXiv 1812.06127, equation 2; w_in are the parameters that came
in, or those that are given as `towards`. Knows nothing of networks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.params import Params
from schemas.task import TrainOptions

Enough: TypeAlias = Callable[[int], bool]
"""Told how many steps were made: whether it is time to stop."""

Gradient: TypeAlias = Callable[[Params, NDArray[np.int64]], Params]
"""(parameters, rows of the batch) -> a fresh vector, the gradient of the batch's mean loss."""


@dataclass(frozen=True, slots=True)
class Descent:
    """How to go down. `momentum` in [0, 1); `weight_decay` and `prox` at least 0."""

    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    prox: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what could only diverge (ValueError)."""
        if not 0 <= self.momentum < 1:
            raise ValueError(f"train.options.momentum is {self.momentum}: choose 0 <= momentum < 1")
        for name, value in (("weight_decay", self.weight_decay), ("prox", self.prox)):
            if value < 0 or not isfinite(value):
                raise ValueError(f"train.options.{name} is {value}: choose a finite number >= 0")


def descent_of(options: TrainOptions) -> Descent:
    """Read what the task asks for. Raises ValueError on an option that would go unheard."""
    extra = options.options
    unknown = set(extra) - {"momentum", "weight_decay", "prox"}
    if unknown:
        remedy = "this trainer knows momentum, weight_decay and prox"
        raise ValueError(f"train.options.{min(unknown)} is unknown: {remedy}")
    for name, value in extra.items():
        if isinstance(value, bool | str):
            raise ValueError(  # noqa: TRY004 - the task's value is wrong, not a caller's type
                f"train.options.{name} is {value!r}: a number is needed"
            )
    numbers = {name: float(value) for name, value in extra.items()}
    return Descent(options.epochs, options.batch_size, options.learning_rate, **numbers)


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
    """
    centre = start if towards is None else towards
    params, velocity = start.copy(), np.zeros_like(start)
    steps = 0
    for _ in range(how.epochs):
        for rows in batches(count, how.batch_size, rng):
            if steps and enough(steps):
                return params
            steps += 1
            slope = gradient(params, rows)
            slope += how.weight_decay * params + how.prox * (params - centre)
            if still is not None:
                slope[still] = 0
            velocity *= how.momentum
            velocity += slope
            params -= how.learning_rate * velocity
    return params
