"""The model that a device makes for itself and never sends: `[train.personal]`. Pure.

w is the model that a round began from, F this device's mean loss, eta the rate of [train.personal].

finetune   v <- w, then epochs of  v <- v - eta grad F(v)
           whole, or only the tensors of `head`. With few local steps in [train] the fold and this
           together are Reptile (Nichol, Achiam and Schulman, "On First-Order Meta-Learning
           Algorithms", arXiv 1803.02999, Algorithm 2): w <- w + e mean(w_local - w) is what
           fedbuff does with server_lr = e, and finetuning is what that start is good for.

ditto      epochs of  v <- v - eta (grad F(v) + lambda (v - w))
           v is kept between rounds and begins as the first w; lambda is `pull` (Li, Hu, Beirami
           and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML
           2021, arXiv 2012.04221, Algorithm 1). With lambda = 0 it never leaves the device; with a
           large one v is w. eta lambda must stay below 2.

Momentum and weight decay are [train]'s. A round that is not the first on its base begins from
the device's own model, so that w is no longer the fleet's: Ditto as in the paper has
rounds_per_base = 1.

FedPer (Arivazhagan et al., arXiv 1912.00818) needs nothing of this: there the head is of kind
`local`, and all tensors move together. FedRep is in `local_training.train_network`.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainers.sgd import Descent, Enough, Gradient, descend, descent_of
from schemas.params import Params, ParamSpec, unflatten
from schemas.task import TrainOptions

BEYOND: Final = "training diverged: lower train.personal.learning_rate"
"""What is said of a personal model that is no longer finite."""


@dataclass(frozen=True, slots=True)
class Personal:
    """A personal model: its tensors' names and shapes, and float32 parameters, shape (size,)."""

    spec: ParamSpec
    params: Params


def personal_descent(options: TrainOptions) -> Descent:
    """How the personal passes go down; no pull. Raises ValueError on a bad option."""
    personal = options.personal
    rate = personal.learning_rate or options.learning_rate
    return replace(descent_of(options), epochs=personal.epochs, learning_rate=rate, prox=0.0)


def members(spec: ParamSpec, names: Collection[str]) -> NDArray[np.bool_]:
    """Where the named tensors lie in a flat vector, shape (size,). Raises ValueError."""
    unknown = sorted(set(names) - {tensor.name for tensor in spec.tensors})
    if unknown:
        raise ValueError(f"train.personal.head names {unknown[0]!r}, which is no tensor here")
    marks = np.zeros(spec.size, np.float32)
    for name, view in unflatten(spec, marks).items():
        view[...] = name in names
    return marks > 0


def personalised(
    start: Personal,
    kept: Personal | None,
    gradient: Gradient,
    count: int,
    options: TrainOptions,
    *,
    rng: "np.random.Generator",
    enough: Enough = lambda _steps: False,
) -> Personal | None:
    """Make this round's personal model; None where the task asks for none.

    Args:
        start: w, what the round began from.
        kept: what came of the round before; of another model it is not heeded.
        gradient: of a batch's mean loss.
        count: examples there are.
        options: what the task asks for.
        rng: shuffles the examples.
        enough: when to stop early.

    Raises:
        ValueError: `head` names no tensor, or an option is bad.
    """
    how, spec = personal_descent(options), start.spec
    match options.personal.method:
        case "none":
            return None
        case "finetune":
            head = options.personal.head
            still = ~members(spec, head) if head else None
            params = descend(start.params, gradient, count, how, rng, enough=enough, still=still)
        case "ditto":
            mine = kept.params if kept is not None and kept.spec == spec else start.params
            pulled = replace(how, prox=options.personal.pull)
            params = descend(
                mine, gradient, count, pulled, rng, enough=enough, towards=start.params
            )
    return Personal(spec, params)
