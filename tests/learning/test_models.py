import numpy as np
import pytest

from benchmarks.learning.datasets import Share
from benchmarks.learning.models import Cnn, Mlp, Network, Steps, cnn, mlp
from edge_agent.trainers.layers import numbered_names
from edge_agent.trainers.network import gradients
from schemas.params import flatten, unflatten


def generator(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def share_of(count: int, classes: int = 10, features: int = 64) -> Share:
    rng = generator(7)
    labels = rng.integers(0, classes, count)
    targets = np.eye(classes, dtype=np.float32)[labels]
    return Share(rng.random((count, features), dtype=np.float32), targets)


def test_a_step_of_the_fast_network_is_the_products():
    network, share = mlp(64, (32, 16), 10), share_of(16)
    start = network.initial(generator())
    delta = network.train(start, share, Steps(0.1, epochs=1), generator())
    slopes = gradients(
        unflatten(network.spec, start),
        numbered_names(3),
        share.features,
        share.targets.argmax(axis=1),
    )
    assert np.allclose(delta, -0.1 * flatten(network.spec, slopes), atol=1e-6)


@pytest.mark.parametrize("network", [cnn((3, 4), 5), mlp(64, (8,), 10)], ids=["cnn", "mlp"])
def test_a_step_leads_down_by_as_much_as_the_slope_says(network: Mlp | Cnn):
    share = share_of(16)
    start = network.initial(generator())
    start += generator(3).normal(0, 0.1, start.size).astype(np.float32)
    step = network.train(start, share, Steps(1.0, epochs=1), generator()).astype(np.float64)
    for part in range(3):  # along the slope of some coordinates only, so that each is looked at
        way = np.where(np.arange(step.size) % 3 == part, step, 0)
        way /= np.linalg.norm(way)
        ahead, back = (
            _cross_entropy(network, start + sign * 2e-3 * way, share) for sign in (1, -1)
        )
        assert (back - ahead) / 4e-3 == pytest.approx(float(step @ way), rel=0.05)


def _cross_entropy(network: Network, params: np.ndarray, share: Share) -> float:
    found = network.scores(params.astype(np.float32), share.features).astype(np.float64)
    found -= found.max(axis=1, keepdims=True)
    logs = found - np.log(np.exp(found).sum(axis=1, keepdims=True))
    return -float(np.mean(logs[share.targets > 0]))
