"""scikit-learn's 1797 handwritten digits, dealt unevenly to a fleet.

Dirichlet label skew as in Li et al., "Federated Learning on Non-IID Data Silos", arXiv 2102.02079,
section IV-B: for every class, p ~ Dir(alpha, ..., alpha) over the devices says who gets how much.
Pure: every draw comes from the generator that is passed in; the digits come with scikit-learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainers.examples import Examples, checked_examples

FEATURES = 64
CLASSES = 10


@dataclass(frozen=True, slots=True)
class DigitsFleet:
    """Who knows which digits: every example is on one device or held out, and nowhere twice."""

    devices: tuple[Examples, ...]
    held_out: Examples


def digits_fleet(
    devices: int,
    rng: np.random.Generator,
    *,
    alpha: float = 0.3,
    held_out: float = 0.2,
    min_examples: int = 8,
) -> DigitsFleet:
    """Deal the digits.

    Args:
        devices: how many devices.
        rng: the only source of chance.
        alpha: Dirichlet concentration: small is skewed, large is even.
        held_out: the share that no device sees.
        min_examples: that every device has at least.

    Raises:
        ValueError: there are not that many digits.
    """
    digits = load_digits()
    rows = rng.permutation(len(digits))
    border = round(held_out * len(digits))
    dealt = rows[border:]
    hands = dirichlet_split(digits.labels[dealt], devices, alpha, rng)
    hands = topped_up(hands, min_examples)
    parts = tuple(take(digits, dealt[hand]) for hand in hands)
    return DigitsFleet(parts, take(digits, rows[:border]))


def load_digits() -> Examples:
    """All of them: features in [0, 1], shape (1797, 64); labels 0 to 9."""
    from sklearn import datasets  # noqa: PLC0415 - takes a second; importing us must not

    digits = datasets.load_digits()
    return checked_examples(digits.data / 16, digits.target)


def take(examples: Examples, rows: NDArray[np.int64]) -> Examples:
    """Some of the examples, by row."""
    return Examples(examples.features[rows], examples.labels[rows])


def dirichlet_split(
    labels: NDArray[np.int64], devices: int, alpha: float, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Deal the rows of `labels` so that every device prefers some classes; a hand may be empty."""
    hands: list[list[NDArray[np.int64]]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(devices, alpha))
        borders = np.rint(np.cumsum(shares)[:-1] * rows.size).astype(np.int64)
        for hand, part in zip(hands, np.split(rows, borders), strict=True):
            hand.append(part)
    return [np.concatenate(hand) for hand in hands]


def topped_up(hands: Sequence[NDArray[np.int64]], minimum: int) -> list[NDArray[np.int64]]:
    """Move rows, the richest giving its last to the poorest, until all have `minimum`.

    Raises:
        ValueError: there are fewer rows than that takes.
    """
    rows = [list(hand) for hand in hands]
    total = sum(map(len, rows))
    if minimum * len(rows) > total:
        raise ValueError(f"{total} examples cannot give {len(rows)} devices {minimum} each")
    while len(poorest := min(rows, key=len)) < minimum:
        poorest.append(max(rows, key=len).pop())
    return [np.array(hand, dtype=np.int64) for hand in rows]
