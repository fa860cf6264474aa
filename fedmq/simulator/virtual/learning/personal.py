"""What devices would make of a model for themselves, as `[train.personal]` says. Pure.

Each is measured on examples of its own that nobody trains on. Ditto's model is kept between rounds
on a real device. Here nothing is kept: it begins anew from the global model, towards which prox
with mu = `pull` holds it, for `epochs` passes. That is near what a device has after its first
round, and a lower bound of what patience would bring.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainers.personal import members
from edge_agent.trainers.sgd import Descent
from fedmq.simulator.virtual.learning.batched import Lesson, order_of, scores, train_stack
from fedmq.simulator.virtual.learning.share import Rows, Share
from schemas.params import Params, ParamSpec
from schemas.task import PersonalOptions

HELD_OUT: Final = 5
"""One in so many examples of the pool is kept by all devices to measure what they made."""

ALONE: Final = 10
"""Who learns alone has no model to begin from: so many times the passes."""


@dataclass(frozen=True, slots=True)
class Pupil:
    """One device: what it trains on, what it is measured on, and its chance."""

    trained: Share
    held: Share
    rng: np.random.Generator


def kept(rows: Rows) -> NDArray[np.bool_]:
    """Which examples may be trained on, by their numbers: the same for all devices.

    So an example that one device is measured on is in no other's training either. A device that
    would be left with nothing trains on all.
    """
    found: NDArray[np.bool_] = rows % HELD_OUT != HELD_OUT - 1
    return found if found.any() else ~found


def accuracies(
    spec: ParamSpec,
    first: Params,
    params: Params,
    pupils: Sequence[Pupil],
    *,
    how: Descent,
    options: PersonalOptions,
) -> dict[str, float]:
    """Mean accuracies over the pupils, each on what it holds out.

    Args:
        spec: W1, b1, W2, b2, ...
        first: the model before the first update.
        params: the global model.
        pupils: at least one, each with something held out.
        how: the task's local training.
        options: the task's [train.personal]; its method is not "none".

    Returns:
        accuracy_global of the model as it is; accuracy_personal of what a device makes of it by
        `method` and `head`; accuracy_local of what it would have learnt without any other, from
        the first model in ALONE times the passes.

    Raises:
        ValueError: `head` names no tensor.
    """
    rate = options.learning_rate or how.learning_rate
    tune = replace(how, epochs=options.epochs, learning_rate=rate, prox=0.0)
    pulled = replace(tune, prox=options.pull if options.method == "ditto" else 0.0)
    still = ~members(spec, options.head) if options.head else None
    personal = train_stack(spec, _lessons(params, pupils, pulled), pulled, still)
    alone = replace(tune, epochs=ALONE * tune.epochs)
    local = train_stack(spec, _lessons(first, pupils, alone), alone)
    return {
        "accuracy_global": _mean(spec, [params] * len(pupils), pupils),
        "accuracy_personal": _mean(spec, list(personal), pupils),
        "accuracy_local": _mean(spec, list(local), pupils),
    }


def _lessons(base: Params, pupils: Sequence[Pupil], how: Descent) -> list[Lesson]:
    return [Lesson(base, p.trained, order_of(len(p.trained), how, p.rng)) for p in pupils]


def _mean(spec: ParamSpec, models: Sequence[Params], pupils: Sequence[Pupil]) -> float:
    """Over devices, of the share of held-out examples that each one's model gets right."""
    total = 0.0
    for params, pupil in zip(models, pupils, strict=True):
        answers = scores(spec, params, pupil.held.features).argmax(axis=1)
        total += float(np.mean(answers == pupil.held.targets.argmax(axis=1)))
    return total / len(pupils)
