"""Examples ready to train on, and how their labels drift with virtual time. Pure."""

from dataclasses import dataclass
from math import floor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.simulator.virtual.learning.data_options import DataOptions

Rows = NDArray[np.int64]
"""Which examples: their numbers."""

_GOLDEN: Final = 0.6180339887498949
"""Multiples of it, modulo 1, are spread evenly over [0, 1)."""


@dataclass(frozen=True, slots=True)
class Share:
    """Examples.

    Attributes:
        features: float32, shape (n, d).
        targets: float32, one-hot of shape (n, classes), or (n, 1) within [0, 1] for a regression.
    """

    features: NDArray[np.float32]
    targets: NDArray[np.float32]

    def __len__(self) -> int:
        """How many, n."""
        return len(self.features)

    def take(self, rows: "Rows | NDArray[np.bool_]") -> "Share":
        """Some of them."""
        return Share(self.features[rows], self.targets[rows])


def one_hot(features: NDArray[np.float32], labels: Rows, classes: int) -> Share:
    """Examples of which every one has a class."""
    return Share(features, np.eye(classes, dtype=np.float32)[labels])


def period_s(options: DataOptions, at_s: float) -> float:
    """When the period of drift began that `at_s` is in; without drift 0."""
    if not (options.drift_classes and options.drift_s):
        return 0.0
    return floor(at_s / options.drift_s) * options.drift_s


def drifted(share: Share, rows: Rows, options: DataOptions, at_s: float) -> Share:
    """The same features with the labels of `at_s`.

    After m whole periods of `drift_s` all labels are rotated m `drift_classes` times; within a
    period a growing share of the examples is one rotation ahead. Which, their numbers tell.
    """
    if not (options.drift_classes and options.drift_s):
        return share
    periods = at_s / options.drift_s
    turns = floor(periods) + ((rows * _GOLDEN) % 1 < periods % 1)
    classes = share.targets.shape[1]
    labels = (share.targets.argmax(axis=1) + options.drift_classes * turns) % classes
    return one_hot(share.features, labels, classes)
