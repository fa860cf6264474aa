"""The server's adaptive step, for FADAS and FedAdam.

With D the buffer's mean, element by element, without bias correction:

    m <- b1 m + (1 - b1) D
    v <- b2 v + (1 - b2) D D
    w <- w + eta m / (sqrt(u) + eps)

FedAdam (Reddi et al., "Adaptive Federated Optimization", ICLR 2021, arXiv 2003.00295, Algorithm 2):
u is v, and v begins at eps^2. FADAS (Wang et al., ICML 2024): u is vhat = max(vhat, v), v begins
at 0, and the rate heeds the largest staleness of the buffer:

    eta_t = eta if smax <= tau_c else min(eta, 1 / smax)
"""

from collections.abc import Mapping

import numpy as np

from aggregator.strategies.stage import Closed
from aggregator.strategies.step import Step
from schemas.delta import BLOCK
from schemas.params import Params
from schemas.strategy import AdamOptions


def adam(options: AdamOptions, *, keeps_max: bool) -> Step:
    """Make the step; `keeps_max`: FADAS's, else FedAdam's."""
    keep1, take1 = np.float32(options.beta1), np.float32(1.0 - options.beta1)
    keep2, take2 = np.float32(options.beta2), np.float32(1.0 - options.beta2)
    eps = np.float32(options.eps)
    names = frozenset({"params", "adam_m", "adam_v", *(["adam_vmax"] if keeps_max else [])})

    def begin(params: Params) -> dict[str, Params]:
        first = 0.0 if keeps_max else options.eps * options.eps
        vectors = {"adam_m": np.zeros_like(params), "adam_v": np.full_like(params, first)}
        return vectors | ({"adam_vmax": np.zeros_like(params)} if keeps_max else {})

    def apply(vectors: Mapping[str, Params], closed: Closed) -> frozenset[str]:
        eta = np.float32(rate_of(options, closed.delay))
        params, firsts, seconds = vectors["params"], vectors["adam_m"], vectors["adam_v"]
        for start in range(0, params.size, BLOCK):
            span = slice(start, start + BLOCK)
            mean, first, second = closed.total[span], firsts[span], seconds[span]
            np.divide(mean, closed.divisor, out=mean)
            np.multiply(first, keep1, out=first)
            np.add(first, mean * take1, out=first)
            np.multiply(mean, mean, out=mean)
            np.multiply(mean, take2, out=mean)
            np.multiply(second, keep2, out=second)
            np.add(second, mean, out=second)
            if keeps_max:
                highest = vectors["adam_vmax"][span]
                second = np.maximum(highest, second, out=highest)
            np.sqrt(second, out=mean)
            np.add(mean, eps, out=mean)
            np.divide(first * eta, mean, out=mean)
            np.add(params[span], mean, out=params[span])
            mean.fill(0)
        return names

    return Step(begin, apply)


def rate_of(options: AdamOptions, delay: float) -> float:
    """FADAS's eta_t; a buffer whose staleness is not noted has delay 0 and takes eta."""
    return options.lr if delay <= options.tau_c else min(options.lr, 1.0 / delay)
