"""What devices would make of a model for themselves, as `[train.personal]` says. Pure.

Each begins from the model as it is and is measured on examples of its own that nobody trains on.
Ditto keeps a model between rounds on a real device; here it begins anew, pulled at by the model.
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
    params: Params,
    pupils: Sequence[Pupil],
    how: Descent,
    options: PersonalOptions,
) -> dict[str, float]:
    """Mean accuracies over the pupils, each on what it holds out.

    Args:
        spec: W1, b1, W2, b2, ...
        params: the global model.
        pupils: at least one, each with something held out.
        how: the task's local training.
        options: the task's [train.personal].

    Returns:
        accuracy_global of the model as it is; accuracy_whole and accuracy_head when all of it, or
        only its last layer, is fine-tuned; accuracy_personal when that is done which `method` and
        `head` say.
    """
    rate = options.learning_rate or how.learning_rate
    tune = replace(how, epochs=options.epochs, learning_rate=rate, prox=0.0)
    last = tuple(tensor.name for tensor in spec.tensors[-2:])
    ways: dict[str, tuple[Descent, tuple[str, ...]]] = {"whole": (tune, ()), "head": (tune, last)}
    match options.method:
        case "finetune":
            ways["personal"] = tune, options.head
        case "ditto":
            ways["personal"] = replace(tune, prox=options.pull), ()
        case "none":
            pass
    found = {"accuracy_global": _mean(spec, [params] * len(pupils), pupils)}
    orders = [order_of(len(p.trained), tune, p.rng) for p in pupils]
    lessons = [Lesson(params, p.trained, o) for p, o in zip(pupils, orders, strict=True)]
    for way, (descent, head) in ways.items():
        still = ~members(spec, head) if head else None
        tuned = train_stack(spec, lessons, descent, still)
        found[f"accuracy_{way}"] = _mean(spec, list(tuned), pupils)
    return found


def _mean(spec: ParamSpec, models: Sequence[Params], pupils: Sequence[Pupil]) -> float:
    """Over devices, of the share of held-out examples that each one's model gets right."""
    total = 0.0
    for params, pupil in zip(models, pupils, strict=True):
        answers = scores(spec, params, pupil.held.features).argmax(axis=1)
        total += float(np.mean(answers == pupil.held.targets.argmax(axis=1)))
    return total / len(pupils)
