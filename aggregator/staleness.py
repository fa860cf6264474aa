"""Staleness weights: how much an update still counts that is `s` versions old.

Xie, Koyejo and Gupta, "Asynchronous Federated Optimization", arXiv 1903.03934, section 5.2:

    constant      S(s) = 1
    polynomial    S(s) = (1 + s)^-a
    hinge         S(s) = 1 if s <= b else 1 / (a (s - b) + 1)

FedBuff (Nguyen et al., arXiv 2106.06639) uses polynomial with a = 1/2. A fresh update weighs
exactly 1 under all three. Python floats, rounded to float32 where they meet an array: the C
libraries' `pow` may differ in the last bit of a float64, and float32 hides it.
"""

from collections.abc import Callable
from typing import TypeAlias

from schemas.strategy import StalenessOptions

StalenessWeight: TypeAlias = Callable[[int], float]
"""Staleness s >= 0 -> weight in (0, 1]."""


def constant() -> StalenessWeight:
    """S(s) = 1."""
    return lambda _staleness: 1.0


def polynomial(a: float) -> StalenessWeight:
    """S(s) = (1 + s)^-a."""
    return lambda staleness: float((1 + staleness) ** -a)


def hinge(a: float, b: float) -> StalenessWeight:
    """S(s) = 1 while s <= b, then 1 / (a (s - b) + 1)."""
    return lambda staleness: 1.0 if staleness <= b else 1.0 / (a * (staleness - b) + 1.0)


def staleness_weight(options: StalenessOptions, paper: StalenessWeight) -> StalenessWeight:
    """The weight that a task asks for; `paper`: that of its strategy's paper."""
    match options.kind:
        case "paper":
            return paper
        case "constant":
            return constant()
        case "polynomial":
            return polynomial(options.a)
        case "hinge":
            return hinge(options.a, options.b)
