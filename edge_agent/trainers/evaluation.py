"""How good a model is: predictions, accuracy, cross-entropy of named tensors on given examples.

Pure, for softmax regression and deeper networks alike; the names of the tensors tell which.
"""

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainers.data import load_examples
from edge_agent.trainers.layers import Real, Tensors, check_layers, layer_names
from edge_agent.trainers.network import forward, log_probabilities
from schemas.evaluation import Evaluation


def predict(tensors: Tensors, features: Real) -> NDArray[np.int64]:
    """The likeliest class of every row: features (n, d) -> int64, shape (n,)."""
    scores = forward(tensors, layer_names(tensors), features)[-1]
    likeliest: NDArray[np.int64] = scores.argmax(axis=1)
    return likeliest


def accuracy(tensors: Tensors, features: Real, labels: NDArray[np.int64]) -> float:
    """The share of examples, in [0, 1], whose likeliest class is their label."""
    return float(np.mean(predict(tensors, features) == labels))


def cross_entropy(tensors: Tensors, features: Real, labels: NDArray[np.int64]) -> float:
    """The mean of -log p(label), in nats."""
    logs = log_probabilities(forward(tensors, layer_names(tensors), features)[-1])
    return -float(np.mean(logs[np.arange(labels.size), labels]))


class HeldOut:
    """An evaluator for `fedmq aggregator --evaluate TASK=edge_agent.trainers:HeldOut`.

    Args:
        data: an .npz file with the arrays `x` and `y` that no device trains on.

    Raises:
        ValueError: the file is not there, or holds no examples.
    """

    def __init__(self, data: str) -> None:
        self._examples = load_examples(data)

    def evaluate(self, tensors: Tensors) -> Evaluation:
        """Loss and accuracy of a softmax or ReLU network. Raises ValueError: it does not fit."""
        x, y = self._examples.features, self._examples.labels
        check_layers(tensors, layer_names(tensors), x.shape[1], int(y.max()))
        found = {"loss": cross_entropy(tensors, x, y), "accuracy": accuracy(tensors, x, y)}
        return Evaluation(len(self._examples), found)
