"""The first half of a buffered strategy: how contributions wait until they are K.

The second half, the server's step, is in `aggregator.strategies.step`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aggregator.strategies.strategy import Contribution, State
from schemas.names import DeviceId
from schemas.params import Params


@dataclass(frozen=True, slots=True)
class Closed:
    """A buffer that is taken: `total / divisor` is the mean.

    Attributes:
        total: float32, shape (size,); whoever takes it may write into it and leaves zeros.
        divisor: above 0.
        delay: the largest staleness in it, where it is noted; else 0.
        changed: names of vectors that are not as before, `total` included where it is kept.
    """

    total: Params
    divisor: np.float32
    delay: float
    changed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Stage:
    """Four functions: vectors to begin with, add one, take all, forget a device.

    `begin` gives a State without `params`: what the stage keeps beside them.
    """

    begin: Callable[[Params], State]
    add: Callable[[State, Contribution, float], tuple[State, frozenset[str]]]
    close: Callable[[State], tuple[State, Closed]]
    forget: Callable[[State, DeviceId], tuple[State, frozenset[str]]]
