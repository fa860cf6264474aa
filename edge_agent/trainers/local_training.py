"""One round of local training of a network: named tensors in, a TrainResult out.

What both built-in trainers do, once they know the names of their layers. What they make of the
model for the device alone is in `edge_agent.trainers.personal`.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from time import monotonic

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_agent.trainer import Stopped, TrainResult
from edge_agent.trainers.data import examples_of
from edge_agent.trainers.evaluation import accuracy, cross_entropy
from edge_agent.trainers.examples import Examples, split
from edge_agent.trainers.layers import LayerNames, Tensors, check_layers
from edge_agent.trainers.network import gradients
from edge_agent.trainers.personal import (
    BEYOND,
    Personal,
    members,
    personal_descent,
    personalised,
)
from edge_agent.trainers.sgd import Enough, Gradient, descend, descent_of
from schemas.delta import peak
from schemas.evaluation import Evaluation
from schemas.params import Params, ParamSpec, flatten, spec_of, unflatten
from schemas.task import TrainOptions


def train_network(
    names: LayerNames,
    examples: Examples,
    tensors: Mapping[str, NDArray[np.float32]],
    options: TrainOptions,
    rng: "np.random.Generator",
    *,
    enough: Enough = lambda _steps: False,
) -> TrainResult:
    """Train, and measure the loss before and after and the accuracy after on the same examples.

    With `options.personal.head_epochs` as FedRep does (Collins et al., "Exploiting Shared
    Representations for Personalized Federated Learning", ICML 2021, arXiv 2102.07078, Algorithm
    1): first the head h, which is this device's own, then the body phi below it, which is shared:

        h   <- h - eta grad_h F(phi, h)        head_epochs times over the examples
        phi <- phi - eta grad_phi F(phi, h)    as [train] says

    `options.personal.head` names the head. A bound on steps holds for each of the two.

    Raises:
        ValueError: the tensors do not fit the examples, an option is bad, or training diverged.
    """
    check_layers(tensors, names, examples.features.shape[1], int(examples.labels.max()))
    how, count = descent_of(options), len(examples)
    spec = spec_of(tensors)
    start, still = flatten(spec, tensors), None
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is found below, once
        gradient = gradient_on(spec, names, examples)
        if options.personal.head_epochs:
            still = members(spec, options.personal.head)
            own = replace(personal_descent(options), epochs=options.personal.head_epochs)
            start = descend(start, gradient, count, own, rng, enough=enough, still=~still)
        end = descend(start, gradient, count, how, rng, enough=enough, still=still)
        metrics = _metrics(tensors, unflatten(spec, end), examples)
    if not (isfinite(peak(end)) and all(map(isfinite, metrics.values()))):
        raise ValueError("training diverged: lower train.learning_rate")
    return TrainResult(unflatten(spec, end), count, metrics)


def gradient_on(spec: ParamSpec, names: LayerNames, examples: Examples) -> Gradient:
    """The gradient over these examples as a function of one flat vector."""

    def gradient(params: Params, rows: NDArray[np.int64]) -> Params:
        x, y = examples.features[rows], examples.labels[rows]
        return flatten(spec, gradients(unflatten(spec, params), names, x, y))

    return gradient


def _metrics(
    before: Mapping[str, Params], after: Mapping[str, Params], examples: Examples
) -> dict[str, float]:
    x, y = examples.features, examples.labels
    return {
        "loss_before": cross_entropy(before, x, y),
        "loss_after": cross_entropy(after, x, y),
        "accuracy": accuracy(after, x, y),
    }


def budget(options: TrainOptions, clock: Callable[[], float], *, spent_s: float = 0.0) -> Enough:
    """When a round is over, by `steps` and `seconds`; `spent_s` of these have passed by now."""
    began = clock() - spent_s

    def enough(steps: int) -> bool:
        if options.steps and steps >= options.steps:
            return True
        return bool(options.seconds) and clock() - began >= options.seconds

    return enough


def unless_told(told: threading.Event, enough: Enough) -> Enough:
    """`enough`, which raises Stopped when it was told so."""

    def heeding(steps: int) -> bool:
        if told.is_set():
            raise Stopped("it was told to stop")
        return enough(steps)

    return heeding


class LocalTrainer:
    """A network on this device's own examples: what the built-in trainers have in common.

    Args:
        features: real numbers, shape (n, ...); every example is laid flat.
        labels: whole numbers from 0, shape (n,).
        data: instead of both, an .npz file with the keys `x` and `y`.
        holdout: the share of the examples that is never trained on; the global model is measured
            on them. Which ones they are follows from their number alone.
        clock: in seconds, for the task's budget of time.

    Raises:
        ValueError: the examples are empty, not finite or do not fit each other.
    """

    def __init__(
        self,
        features: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        data: str = "",
        holdout: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        examples = examples_of(features, labels, data)
        self._examples, self._held_out = split(examples, holdout)
        self._clock = clock
        self._personal: Personal | None = None
        self._told = threading.Event()

    def stop(self) -> None:
        """See `Trainer`: the round that runs ends within a step."""
        self._told.set()

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: "np.random.Generator",
    ) -> TrainResult:
        """See `Trainer.train`. `options.options`: momentum, weight_decay, prox.

        What is returned does not depend on `options.personal.method`: the personal model is made
        afterwards, with randomness of its own, in as many steps as the round may have and in what
        is left of its seconds. One step of it is always made.
        """
        self._told.clear()
        enough = unless_told(self._told, budget(options, self._clock))
        names = self.layers(tensors)
        result = train_network(names, self._examples, tensors, options, rng, enough=enough)
        self._personal = self._personalised(names, tensors, options, rng, enough)
        return result

    def _personalised(
        self,
        names: LayerNames,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: "np.random.Generator",
        enough: Enough,
    ) -> Personal | None:
        """This round's personal model. Raises ValueError."""
        if options.personal.method == "none":
            return None
        spec, count = spec_of(tensors), len(self._examples)
        gradient = gradient_on(spec, names, self._examples)
        start, (own,) = Personal(spec, flatten(spec, tensors)), rng.spawn(1)
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is found below, once
            found = personalised(
                start, self._personal, gradient, count, options, rng=own, enough=enough
            )
        if found is not None and not isfinite(peak(found.params)):
            raise ValueError(BEYOND)
        return found

    def personal(self) -> Mapping[str, NDArray[np.float32]] | None:
        """A copy of the personal model, by names and shapes as the task's; it is never sent.

        None before the first round and where the task asks for none. With FedPer and FedRep the
        adopted model has this device's own tensors in it: there is no other. A trainer that is
        made again begins anew.
        """
        mine = self._personal
        return None if mine is None else unflatten(mine.spec, mine.params.copy())

    def evaluate(self, tensors: Mapping[str, NDArray[np.float32]]) -> Evaluation | None:
        """See `Evaluator.evaluate`: loss and accuracy on what is held out.

        Where there is a personal model `personal_loss` and `personal_accuracy` are its own: as the
        last round has left it, which began from an older model than this one.
        """
        examples = self._held_out
        if examples is None:
            return None
        names = self.layers(tensors)
        check_layers(tensors, names, examples.features.shape[1], int(examples.labels.max()))
        x, y = examples.features, examples.labels
        found = {"loss": cross_entropy(tensors, x, y), "accuracy": accuracy(tensors, x, y)}
        mine = self.personal()
        if mine is not None and spec_of(mine) == spec_of(tensors):
            found["personal_loss"] = cross_entropy(mine, x, y)
            found["personal_accuracy"] = accuracy(mine, x, y)
        return Evaluation(len(examples), found)

    def layers(self, tensors: Tensors) -> LayerNames:
        """Find the layers. Raises ValueError where another trainer is meant."""
        raise NotImplementedError
