"""A device's examples: features and labels that were checked once and fit each other.

Refuses (ValueError) what is empty, ragged, not finite or not a number.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

_REAL: Final = "biuf"
"""numpy's kinds of bool, signed, unsigned and floating."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled examples.

    Attributes:
        features: float32, shape (n, d), finite, n and d at least 1.
        labels: int64, shape (n,), classes counted from 0.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """The number of examples, n."""
        return int(self.labels.size)


def checked_examples(features: ArrayLike, labels: ArrayLike) -> Examples:
    """Check and convert. An example may have any shape: it is laid flat.

    Args:
        features: real numbers, shape (n, ...).
        labels: whole numbers from 0, shape (n,).

    Raises:
        ValueError: they are empty, differ in length, or hold what is no finite number.
    """
    x, y = _features(features), _labels(labels)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} rows of features but {len(y)} labels")
    return Examples(x, y)


def split(examples: Examples, holdout: float) -> tuple[Examples, Examples | None]:
    """Part examples into those to train on and those held out: every k-th, k about 1 / holdout.

    Raises:
        ValueError: the share is not within [0, 1), or leaves nothing on one side.
    """
    if not holdout:
        return examples, None
    if not 0 < holdout < 1:
        raise ValueError(f"holdout is {holdout}: choose a share of at least 0 and below 1")
    places = np.arange(len(examples))
    held = np.floor((places + 1) * holdout) > np.floor(places * holdout)
    if held.all() or not held.any():
        raise ValueError(f"holdout {holdout} of {len(examples)} examples leaves one side empty")
    x, y = examples.features, examples.labels
    return Examples(x[~held], y[~held]), Examples(x[held], y[held])


def _features(given: ArrayLike) -> NDArray[np.float32]:
    found = _real(given, "features")
    if found.ndim < 2:
        raise ValueError(f"features have shape {found.shape}: the first axis must be the example")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is refused
        x = np.ascontiguousarray(found.reshape(len(found), -1), dtype=np.float32)
    if not np.isfinite(x).all():
        raise ValueError("features hold NaN or infinity: clean or drop those rows")
    return x


def _labels(given: ArrayLike) -> NDArray[np.int64]:
    found = _real(given, "labels")
    if found.ndim != 1:
        raise ValueError(f"labels have shape {found.shape}: one whole number an example is needed")
    if not np.isfinite(found).all():
        raise ValueError("labels hold NaN or infinity: clean or drop those rows")
    y = found.astype(np.int64)
    if (y != found).any() or (y < 0).any():
        raise ValueError("labels must be whole numbers counted from 0")
    return y


def _real(given: ArrayLike, what: str) -> NDArray[np.generic]:
    found = np.asarray(given)
    if found.dtype.kind not in _REAL:
        raise ValueError(f"{what} are of type {found.dtype}: real numbers are needed")
    if found.size == 0:
        raise ValueError(f"{what} are empty: there is nothing to train on")
    return found
