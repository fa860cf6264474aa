"""The check itself: what it lets pass, and what it finds."""

import numpy as np
import pytest

from fedmq.onnx_training.gradcheck import check
from schemas.errors import ConfigError
from schemas.params import ParamSpec, TensorSpec

PARAMS = ParamSpec(
    (TensorSpec("one", (400,)), TensorSpec("still", (5,), "frozen"), TensorSpec("two", (9,)))
)


def session(change, kinks=0.0):
    """A smooth loss of 414 numbers, its gradient changed, with a kink near by if asked."""

    def run(feeds):
        theta = feeds["theta"].astype(np.float64)
        wide = np.linspace(0.5, 1.5, theta.size)
        loss = (wide * np.cos(theta)).mean() + kinks * np.abs(theta - 0.1).mean()
        gradient = (-wide * np.sin(theta) + kinks * np.sign(theta - 0.1)) / theta.size
        return [np.float32(loss), change(gradient).astype(np.float32)]

    return run


def tried(change, rng, kinks=0.0):
    theta = rng.normal(size=PARAMS.size).astype(np.float32)
    return check(session(change, kinks), PARAMS, {"theta": theta}, rng)


def test_a_right_gradient_passes(rng) -> None:
    assert tried(lambda g: g, rng) < 1e-2


def test_kinks_do_not_disturb(rng) -> None:
    assert tried(lambda g: g, rng, kinks=0.5) < 5e-2


@pytest.mark.parametrize(
    "change",
    [
        lambda g: 1.15 * g,
        lambda g: -g,
        lambda g: np.zeros_like(g),
        lambda g: np.where(np.arange(g.size) % 5, g, 0),
        lambda g: np.roll(g, 1),
    ],
    ids=["too large", "turned", "missing", "in part missing", "in other places"],
)
def test_a_wrong_gradient_is_found(change, rng) -> None:
    with pytest.raises(ConfigError, match="'one' is off by"):
        tried(change, rng)


def test_only_the_tensor_that_is_wrong_is_named(rng) -> None:
    with pytest.raises(ConfigError, match="'two'"):
        tried(lambda g: np.concatenate([g[:405], 2 * g[405:]]), rng)


def test_what_is_frozen_is_not_looked_at(rng) -> None:
    assert tried(lambda g: np.concatenate([g[:400], 0 * g[400:405], g[405:]]), rng) < 1e-2


def test_a_loss_that_is_not_finite_is_refused(rng) -> None:
    with pytest.raises(ConfigError, match="finite"):
        tried(lambda g: g * np.nan, rng)
