"""The server's step with a rate and momentum.

    m <- beta m + B / K,   w <- w + eta m

Without momentum m is B / K itself, and no vector is kept for it.
"""

from collections.abc import Mapping

import numpy as np

from aggregator.strategies.stage import Closed
from aggregator.strategies.step import Step
from schemas.delta import BLOCK
from schemas.params import Params


def sgd(server_lr: float = 1.0, momentum: float = 0.0) -> Step:
    """Make the step: `server_lr` is eta, `momentum` beta, 0 for none."""
    rate = np.float32(server_lr)
    beta = np.float32(momentum)

    def begin(params: Params) -> dict[str, Params]:
        return {"momentum": np.zeros_like(params)} if momentum else {}

    def apply(vectors: Mapping[str, Params], closed: Closed) -> frozenset[str]:
        memory = vectors["momentum"] if momentum else None
        _step(vectors["params"], closed.total, memory, size=closed.divisor, beta=beta, rate=rate)
        return frozenset({"params", "momentum"} if momentum else {"params"})

    return Step(begin, apply)


def _step(
    params: Params,
    total: Params,
    momentum: Params | None,
    *,
    size: np.float32,
    beta: np.float32,
    rate: np.float32,
) -> None:
    """Do m = beta m + B / K, w += eta m, B = 0, in place and in blocks."""
    for start in range(0, params.size, BLOCK):
        span = slice(start, start + BLOCK)
        mean = total[span]
        np.divide(mean, size, out=mean)
        if momentum is not None:
            memory = momentum[span]
            np.multiply(memory, beta, out=memory)
            np.add(memory, mean, out=memory)
            np.multiply(memory, rate, out=mean)
        elif rate != 1:
            np.multiply(mean, rate, out=mean)
        np.add(params[span], mean, out=params[span])
        mean.fill(0)
