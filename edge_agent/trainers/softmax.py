"""Softmax regression on this device's examples: tensors {"W": (d, c), "b": (c,)}."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_agent.trainer import TrainResult
from edge_agent.trainers.data import examples_of
from edge_agent.trainers.layers import SOFTMAX_NAMES, layer_names
from edge_agent.trainers.local_training import train_network
from schemas.task import TrainOptions


class SoftmaxTrainer:
    """A Trainer for `fedmq-agent --trainer edge_agent.trainers:SoftmaxTrainer`.

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
        if layer_names(tensors) != SOFTMAX_NAMES:
            raise ValueError(f"tensors {sorted(tensors)} are not ['W', 'b']: try MlpTrainer")
        return train_network(SOFTMAX_NAMES, self._examples, tensors, options, rng)
