from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.trainers.evaluation import cross_entropy
from edge_agent.trainers.layers import layer_names
from edge_agent.trainers.network import forward, gradients, log_probabilities
from schemas.initial import mlp_shapes

Doubles = dict[str, NDArray[np.float64]]
STEP = 1e-6


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def model(hidden: tuple[int, ...]) -> Doubles:
    rng = generator()
    shapes = mlp_shapes(4, hidden, 3) if hidden else {"W": (4, 3), "b": (3,)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def slope_by_difference(
    tensors: Doubles,
    name: str,
    at: tuple[int, ...],
    x: NDArray[np.float64],
    y: NDArray[np.int64],
) -> float:
    losses = []
    for sign in (1, -1):
        moved = {key: value.copy() for key, value in tensors.items()}
        moved[name][at] += sign * STEP
        losses.append(cross_entropy(moved, x, y))
    return (losses[0] - losses[1]) / (2 * STEP)


@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_gradients_agree_with_finite_differences(hidden: tuple[int, ...]) -> None:
    rng, tensors = generator(1), model(hidden)
    x, y = rng.standard_normal((6, 4)), rng.integers(0, 3, 6)
    found = gradients(tensors, layer_names(tensors), x, y)
    assert {name: slope.shape for name, slope in found.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
    for name, slope in found.items():
        for at in product(*map(range, slope.shape)):
            near = slope_by_difference(tensors, name, at, x, y)
            assert slope[at] == pytest.approx(near, abs=1e-7)


def test_gradients_keep_float32() -> None:
    tensors = {name: tensor.astype(np.float32) for name, tensor in model((5,)).items()}
    x = generator().standard_normal((6, 4), dtype=np.float32)
    found = gradients(tensors, layer_names(tensors), x, np.zeros(6, dtype=np.int64))
    assert {slope.dtype for slope in found.values()} == {np.dtype(np.float32)}


def test_forward_shows_what_every_layer_sees() -> None:
    tensors = model((5, 4))
    x = generator().standard_normal((6, 4))
    seen = forward(tensors, layer_names(tensors), x)
    assert [part.shape for part in seen] == [(6, 4), (6, 5), (6, 4), (6, 3)]
    assert all(part.min() >= 0 for part in seen[1:-1])
    assert seen[-1].min() < 0


def test_large_scores_do_not_overflow() -> None:
    logs = log_probabilities(np.array([[1e4, 0.0], [-1e4, 0.0]]))
    assert logs.tolist() == [[0.0, -1e4], [-1e4, 0.0]]


def test_probabilities_sum_to_1() -> None:
    logs = log_probabilities(generator().standard_normal((7, 3)))
    assert np.exp(logs).sum(axis=1) == pytest.approx(np.ones(7))
