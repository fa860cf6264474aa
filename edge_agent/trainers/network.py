"""A network of ReLU layers under softmax cross-entropy: forwards, and backwards by hand.

Glorot, Bordes and Bengio, "Deep Sparse Rectifier Neural Networks", AISTATS 2011. With no hidden
layer it is softmax regression. Everything keeps the dtype that comes in.
"""

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainers.layers import LayerNames, Real, Tensors


def forward(tensors: Tensors, names: LayerNames, features: Real) -> list[Real]:
    """What every layer sees, and last the scores: [(n, d), (n, h1), ..., (n, c)]."""
    seen = [features]
    for weights, bias in names[:-1]:
        seen.append(np.maximum(seen[-1] @ tensors[weights] + tensors[bias], 0))
    weights, bias = names[-1]
    seen.append(seen[-1] @ tensors[weights] + tensors[bias])
    return seen


def log_probabilities(scores: Real) -> Real:
    """Logarithm of the softmax of every row, shape (n, c); large scores do not overflow."""
    shifted: Real = scores - scores.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def gradients(
    tensors: Tensors, names: LayerNames, features: Real, labels: NDArray[np.int64]
) -> dict[str, Real]:
    """Gradient of the mean cross-entropy with respect to every tensor, named and shaped as it is.

    Args:
        tensors: the parameters.
        names: their layers.
        features: shape (n, d).
        labels: shape (n,), each below c.
    """
    *seen, scores = forward(tensors, names, features)
    slope = _score_slope(scores, labels)
    found: dict[str, Real] = {}
    for depth in reversed(range(len(names))):
        weights, bias = names[depth]
        found[weights] = seen[depth].T @ slope
        found[bias] = slope.sum(axis=0)
        if depth:
            slope = (slope @ tensors[weights].T) * (seen[depth] > 0)
    return found


def _score_slope(scores: Real, labels: NDArray[np.int64]) -> Real:
    """Gradient of the mean loss with respect to the scores: (softmax - one hot) / n."""
    slope: Real = np.exp(log_probabilities(scores))
    slope[np.arange(labels.size), labels] -= 1
    slope /= labels.size
    return slope
