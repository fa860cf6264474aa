"""A ReLU network on this device's examples: tensors {"W1", "b1", "W2", "b2", ...}."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_agent.trainer import TrainResult
from edge_agent.trainers.data import examples_of
from edge_agent.trainers.layers import SOFTMAX_NAMES, layer_names
from edge_agent.trainers.local_training import train_network
from schemas.task import TrainOptions


class MlpTrainer:
    """A Trainer for `fedmq-agent --trainer edge_agent.trainers:MlpTrainer`.

    The task's tensors tell how many layers there are and how wide (`schemas.initial.mlp_shapes`).

    Args:
        features: real numbers, shape (n, ...); every example is laid flat.
        labels: whole numbers from 0, shape (n,).
        data: instead of both, an .npz file with the keys `x` and `y`.

    Raises:
        ValueError: the examples are empty, not finite or do not fit each other.
    """

    def __init__(
        self,
        features: ArrayLike | None = None,
        labels: ArrayLike | None = None,
        *,
        data: str = "",
    ) -> None:
        self._examples = examples_of(features, labels, data)

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: "np.random.Generator",
    ) -> TrainResult:
        """See `Trainer.train`. `options.options`: momentum, weight_decay, prox."""
        names = layer_names(tensors)
        if names == SOFTMAX_NAMES:
            raise ValueError("tensors 'W' and 'b' are softmax regression: try SoftmaxTrainer")
        return train_network(names, self._examples, tensors, options, rng)
