"""A user's own data and trainer, imported by name as a fleet file would."""

from typing import Any

import numpy as np

from edge_agent.trainer import TrainResult


def two_blobs(device: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Thirty examples of two classes; what device 13 gives is of a third."""
    labels = rng.integers(2, size=30) + (device == 13)
    return rng.normal(size=(30, 3)) + 3 * labels[:, None], labels


def seen_by_nobody(rng: np.random.Generator) -> tuple[Any, Any]:
    """Both classes."""
    labels = np.arange(40) % 2
    return rng.normal(size=(40, 3)) + 3 * labels[:, None], labels


def one_class(rng: np.random.Generator) -> tuple[Any, Any]:
    """Nothing to tell apart."""
    return rng.normal(size=(4, 3)), np.zeros(4)


def no_pair(device: int, _rng: np.random.Generator) -> Any:
    """No features and labels."""
    return device


class Diverging:
    """Finds nothing but infinity, and says so."""

    def __init__(self, features: Any, labels: Any) -> None:
        del features, labels

    def train(self, tensors: Any, options: Any, rng: np.random.Generator) -> TrainResult:
        """Refuse."""
        raise ValueError("training diverged")


class Shapeless(Diverging):
    """Gives what nobody has asked for."""

    def train(self, tensors: Any, options: Any, rng: np.random.Generator) -> TrainResult:
        """Give one number."""
        return TrainResult({"w": np.zeros(1)}, 1)


class Counting:
    """Adds 1 for every step that it is allowed; refuses bounds that a clock would judge."""

    def __init__(self, features: Any, labels: Any) -> None:
        self.examples = len(features)
        assert len(labels) == self.examples

    def train(self, tensors: Any, options: Any, rng: np.random.Generator) -> TrainResult:
        """Give what came in, plus the steps."""
        assert not options.seconds
        assert not options.joules
        return TrainResult({k: v + options.steps for k, v in tensors.items()}, self.examples)
