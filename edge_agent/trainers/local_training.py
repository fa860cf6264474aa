"""One round of local training of a network: named tensors in, a TrainResult out.

What both built-in trainers do, once they know the names of their layers.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from time import monotonic

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_agent.trainer import TrainResult
from edge_agent.trainers.data import examples_of
from edge_agent.trainers.evaluation import accuracy, cross_entropy
from edge_agent.trainers.examples import Examples, split
from edge_agent.trainers.layers import LayerNames, Tensors, check_layers
from edge_agent.trainers.network import gradients
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

    Raises:
        ValueError: the tensors do not fit the examples, an option is bad, or training diverged.
    """
    check_layers(tensors, names, examples.features.shape[1], int(examples.labels.max()))
    how = descent_of(options)
    spec = spec_of(tensors)
    start = flatten(spec, tensors)
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is found below, once
        gradient = gradient_on(spec, names, examples)
        end = descend(start, gradient, len(examples), how, rng, enough=enough)
        metrics = _metrics(tensors, unflatten(spec, end), examples)
    if not (isfinite(peak(end)) and all(map(isfinite, metrics.values()))):
        raise ValueError("training diverged: lower train.learning_rate")
    return TrainResult(unflatten(spec, end), len(examples), metrics)


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


def budget(options: TrainOptions, clock: Callable[[], float]) -> Enough:
    """When a round is over, by `steps` and `seconds`; the clock runs from now."""
    began = clock()

    def enough(steps: int) -> bool:
        if options.steps and steps >= options.steps:
            return True
        return bool(options.seconds) and clock() - began >= options.seconds

    return enough


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

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: "np.random.Generator",
    ) -> TrainResult:
        """See `Trainer.train`. `options.options`: momentum, weight_decay, prox."""
        enough = budget(options, self._clock)
        names = self.layers(tensors)
        return train_network(names, self._examples, tensors, options, rng, enough=enough)

    def evaluate(self, tensors: Mapping[str, NDArray[np.float32]]) -> Evaluation | None:
        """See `Evaluator.evaluate`: loss and accuracy on what is held out."""
        examples = self._held_out
        if examples is None:
            return None
        names = self.layers(tensors)
        check_layers(tensors, names, examples.features.shape[1], int(examples.labels.max()))
        x, y = examples.features, examples.labels
        found = {"loss": cross_entropy(tensors, x, y), "accuracy": accuracy(tensors, x, y)}
        return Evaluation(len(examples), found)

    def layers(self, tensors: Tensors) -> LayerNames:
        """Find the layers. Raises ValueError where another trainer is meant."""
        raise NotImplementedError
