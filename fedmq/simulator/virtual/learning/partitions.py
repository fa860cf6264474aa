"""Who gets which examples of a pool: dealt out once, or drawn on demand by every device. Pure.

Label skew as in Li et al., "Federated Learning on Non-IID Data Silos", arXiv 2102.02079, section
IV-B; shards as in McMahan et al., AISTATS 2017, arXiv 1602.05629, section 3. A device that draws
has a generator of its own, seeded by (seed, stream, device): nothing is kept of it, and it draws
the same every time it is asked.
"""

from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import numpy as np

from fedmq.demo.digits import dirichlet_split, topped_up
from fedmq.simulator.virtual.learning.data_options import DataOptions
from fedmq.simulator.virtual.learning.share import Rows
from schemas.errors import ConfigError

Skew: TypeAlias = Literal["iid", "dirichlet", "shards", "quantity"]
Hands: TypeAlias = Callable[[int], Rows]
"""(device) -> which examples of the pool it has, at least MIN_EXAMPLES of them."""

MIN_EXAMPLES: Final = 8
EXAMPLES: Final = 50
"""Drawn by a device when the fleet is too large for the pool, and the options name no number."""
_MOST: Final = 20
"""No device draws more than so many times the average."""

DEAL: Final = 1
DRAW: Final = 2
TRAIN: Final = 3
ATTACK: Final = 4
TUNE: Final = 5
"""Streams of chance, in use throughout `learning`."""


def generator(seed: int, *stream: int) -> np.random.Generator:
    """The chance of one stream."""
    return np.random.Generator(np.random.PCG64([seed, *stream]))


def hands_of(labels: Rows, skew: Skew, options: DataOptions, devices: int, seed: int) -> Hands:
    """Deal or let draw.

    Args:
        labels: the classes of the pool, shape (n,).
        skew: the kind of partition.
        options: see there.
        devices: how many there are.
        seed: of all chance.

    Raises:
        ConfigError: an option does not go with the pool.
    """
    if not options.examples and devices * MIN_EXAMPLES <= labels.size:
        dealt = _dealt(labels, skew, options, devices, generator(seed, DEAL))
        return dealt.__getitem__
    if 0 < options.examples < MIN_EXAMPLES:
        raise ConfigError("data.examples", f"must be 0, or at least {MIN_EXAMPLES} a device")
    pools = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    if skew == "shards" and options.shards_per_device > len(pools):
        remedy = f"must not exceed the {len(pools)} classes of the data"
        raise ConfigError("data.shards_per_device", remedy)
    number = options.examples or EXAMPLES
    return lambda device: _drawn(pools, skew, options, number, generator(seed, DRAW, device))


def _dealt(
    labels: Rows, skew: Skew, options: DataOptions, devices: int, rng: np.random.Generator
) -> list[Rows]:
    """Every example goes to one device."""
    match skew:
        case "iid":
            hands = np.array_split(rng.permutation(labels.size), devices)
        case "dirichlet":
            hands = dirichlet_split(labels, devices, options.alpha, rng)
        case "shards":
            order = rng.permutation(labels.size)
            order = order[np.argsort(labels[order], kind="stable")]
            shards = np.array_split(order, devices * options.shards_per_device)
            deck = rng.permutation(len(shards)).reshape(devices, -1)
            hands = [np.concatenate([shards[i] for i in hand]) for hand in deck]
        case "quantity":
            borders = np.cumsum(rng.dirichlet(np.full(devices, options.alpha)))[:-1]
            places = np.rint(borders * labels.size).astype(np.int64)
            hands = np.split(rng.permutation(labels.size), places)
    return topped_up(hands, MIN_EXAMPLES)


def _drawn(
    pools: list[Rows], skew: Skew, options: DataOptions, number: int, rng: np.random.Generator
) -> Rows:
    """One device draws with replacement."""
    sizes = np.array([pool.size for pool in pools])
    chances = sizes / sizes.sum()
    match skew:
        case "dirichlet":
            chances = rng.dirichlet(np.full(len(pools), options.alpha))
        case "shards":
            mine = rng.choice(len(pools), options.shards_per_device, replace=False)
            chances = np.bincount(mine, minlength=len(pools)) / mine.size
        case "quantity":
            # Gamma variates over their sum are Dirichlet: the sum of a large fleet's is its mean
            drawn = number * rng.gamma(options.alpha) / options.alpha
            number = round(min(max(drawn, MIN_EXAMPLES), _MOST * number))
        case "iid":
            pass
    counts = rng.multinomial(number, chances)
    parts = [p[rng.integers(p.size, size=n)] for p, n in zip(pools, counts, strict=True) if n]
    return np.concatenate(parts)
