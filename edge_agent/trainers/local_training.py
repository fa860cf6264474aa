"""One round of local training of a network: named tensors in, a TrainResult out.

What both built-in trainers do, once they know the names of their layers.
"""

from collections.abc import Mapping
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainer import TrainResult
from edge_agent.trainers.evaluation import accuracy, cross_entropy
from edge_agent.trainers.examples import Examples
from edge_agent.trainers.layers import LayerNames, check_layers
from edge_agent.trainers.network import gradients
from edge_agent.trainers.sgd import Gradient, descend, descent_of
from schemas.delta import peak
from schemas.params import Params, ParamSpec, flatten, spec_of, unflatten
from schemas.task import TrainOptions


def train_network(
    names: LayerNames,
    examples: Examples,
    tensors: Mapping[str, NDArray[np.float32]],
    options: TrainOptions,
    rng: "np.random.Generator",
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
        end = descend(start, gradient_on(spec, names, examples), len(examples), how, rng)
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
