"""At the door: an update that is too long, or at odds with the server's own, is not folded.

The server's own is `state.vectors["guide"]`, the delta that it has trained itself on a small root
data set, from a published version. While there is none, or it is zero, the guard lets all pass.
What is refused leaves the state as it was.

    max_norm    ||d|| <= max_norm. Where a sparse delta repeats an index, d is the sum.

    aflguard    Fang, Liu, Gong and Bentley, "AFLGuard: Byzantine-robust Asynchronous Federated
                Learning", ACSAC 2022, equation 3: ||d - g|| <= lambda ||g||, where g is the guide,
                made from another version than d was.

    zeno++      Xie, Koyejo and Gupta, "Zeno++: Robust Fully Asynchronous SGD", ICML 2020,
                Algorithm 1 and definition 2. The update is brought to the guide's length,
                u = d ||g|| / ||d||, must do <g, u> - rho ||u||^2 >= -epsilon ||g||^2, and u is
                what is folded. The paper's g and u are gradients, and its epsilon is absolute;
                deltas are gradients times a rate, so that epsilon is measured in ||g||^2: what
                passes does not depend on the rate. In other words cos(g, d) >= rho - epsilon.
                A delta of no length passes as it is.

Buffers of the model (BatchNorm's statistics) count like any other coordinate.
"""

from dataclasses import replace
from math import sqrt

import numpy as np

from aggregator.exact import SPAN, inner, squared_distance, squared_norm, tree_sum
from aggregator.strategies.strategy import Contribution, Outcome, Refused, State, Strategy, Views
from schemas.delta import Delta, Dense, Sparse
from schemas.outcomes import Reason
from schemas.params import Params
from schemas.strategy import RobustOptions


def guarded(strategy: Strategy, options: RobustOptions) -> Strategy:
    """The same strategy, behind max_norm and the guard; itself where neither is asked for."""
    if not options.max_norm and options.guard == "none":
        return strategy

    def fold(state: State, contribution: Contribution, views: Views) -> tuple[State, Outcome]:
        delta = summed_up(contribution.delta)
        length = length_of(delta)
        if options.max_norm and length > options.max_norm:
            return state, _outlier(f"{length:.6g} long, more than {options.max_norm:g}")
        guide = state.vectors.get("guide") if options.guard != "none" else None
        reach = 0.0 if guide is None else sqrt(squared_norm(guide))
        if guide is None or not reach:
            return strategy.fold(state, contribution, views)
        if options.guard == "aflguard":
            apart = _distance(delta, guide, reach)
            if apart > options.guard_radius * reach:
                told = f"{apart:.6g} from the server's own, which is {reach:.6g} long"
                return state, _outlier(told)
        elif length:
            agreed = _inner(delta, guide) / length / reach
            if agreed - options.zeno_rho < -options.zeno_slack:
                return state, _outlier(f"its cosine with the server's own is {agreed:.6g}")
            contribution = replace(contribution, delta=_stretched(delta, reach / length))
        return strategy.fold(state, contribution, views)

    return replace(strategy, fold=fold)


def summed_up(delta: Delta) -> Delta:
    """The same delta with every index once, in ascending order: float32 sums, as folded alone."""
    if isinstance(delta, Dense):
        return delta
    indices, places = np.unique(delta.indices, return_inverse=True)
    values = np.zeros(indices.size, dtype=np.float32)
    np.add.at(values, places.reshape(-1), delta.values)
    return Sparse(indices, values)


def length_of(delta: Delta) -> float:
    """The Euclidean length of a delta that has every index at most once (`summed_up`)."""
    return sqrt(squared_norm(delta.values))


def _outlier(told: str) -> Refused:
    return Refused(Reason.OUTLIER, told)


def _inner(delta: Delta, guide: Params) -> float:
    match delta:
        case Dense(values):
            return inner(values, guide)
        case Sparse(indices, values):
            return inner(values, guide[indices])


def _distance(delta: Delta, guide: Params, reach: float) -> float:
    """||d - g||. For a sparse one ||g||^2 + sum of (d_j - g_j)^2 - g_j^2 over its coordinates."""
    if isinstance(delta, Dense):
        return sqrt(squared_distance(delta.values, guide))
    values = delta.values.astype(np.float64)
    there = guide[delta.indices].astype(np.float64)
    return sqrt(max(0.0, reach * reach + tree_sum(values * (values - 2.0 * there))))


def _stretched(delta: Delta, factor: float) -> Delta:
    """The delta times a factor: multiplied in float64, rounded to float32."""
    values = np.empty_like(delta.values)
    for start in range(0, values.size, SPAN):
        span = slice(start, start + SPAN)
        values[span] = delta.values[span].astype(np.float64) * factor
    return Dense(values) if isinstance(delta, Dense) else Sparse(delta.indices, values)
