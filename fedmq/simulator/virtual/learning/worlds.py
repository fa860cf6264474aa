"""The data of a fleet file: read once, told device by device. Imports a user's functions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.importing import imported
from edge_agent.trainers.examples import Examples, checked_examples
from fedmq.demo.digits import CLASSES, load_digits
from fedmq.simulator.virtual.learning.data_options import DataOptions
from fedmq.simulator.virtual.learning.partitions import DEAL, DRAW, generator, hands_of
from fedmq.simulator.virtual.learning.share import Rows, Share, one_hot
from fedmq.simulator.virtual.learning.turbofan import RUL_MAX, read_turbofan
from schemas.errors import ConfigError

_KEPT: Final = 4096
"""Devices of which it is remembered which examples they have; the others draw the same anew."""

_KEPT_OWN: Final = 256
"""Devices whose examples are remembered as a user's function gave them: these may be large."""


@dataclass(frozen=True, slots=True)
class World:
    """Who knows what, and what nobody has seen.

    Attributes:
        held_out: what every version is measured on.
        rows: (device) -> numbers of its examples: the same number is the same example.
        share: (device) -> its examples, in the order of `rows`.
        unit: what 1 of a regression's target is worth when its error is told.
        root: what the server has itself; None: nothing.
    """

    held_out: Share
    rows: Callable[[int], Rows]
    share: Callable[[int], Share]
    unit: float = 1.0
    root: Share | None = None

    @property
    def regression(self) -> bool:
        """Whether a number is asked for, and no class."""
        return bool(self.held_out.targets.shape[1] == 1)


def world_of(options: DataOptions, devices: int, seed: int) -> World:
    """Read and deal the data. Raises ConfigError."""
    if options.drift_classes and not options.drift_s:
        raise ConfigError("data.drift_s", "must be above 0 with drift_classes: the time they take")
    kind, colon, rest = options.source.partition(":")
    if options.source == "digits":
        return _digits(options, devices, seed)
    if options.root:
        raise ConfigError("data.root", "is taken from the digits: leave it out")
    if options.partition not in ("auto", "natural"):
        remedy = f'"{options.source}" is dealt as it is: leave it out or write "natural"'
        raise ConfigError("data.partition", remedy)
    if kind == "turbofan" and colon:
        return _turbofan(options, rest)
    if colon:
        return _own(options, seed)
    remedy = 'is none of "digits", "turbofan:PATH", "module:function"'
    raise ConfigError("data.source", f'"{options.source}" {remedy}')


def _digits(options: DataOptions, devices: int, seed: int) -> World:
    """A fifth is held out, as the demo does."""
    skew = "dirichlet" if options.partition == "auto" else options.partition
    if skew == "natural":
        raise ConfigError("data.partition", 'digits have no owners: try "dirichlet" or "iid"')
    digits = load_digits()
    order = generator(seed, DEAL, 0).permutation(len(digits))
    border = len(digits) // 5
    whole = one_hot(digits.features, digits.labels, CLASSES)
    held_out, pool = whole.take(order[:border]), whole.take(order[border:])
    hands = hands_of(digits.labels[order[border:]], skew, options, devices, seed)
    rows = lru_cache(_KEPT)(hands)
    if options.root > len(pool):
        raise ConfigError("data.root", f"must not exceed {len(pool)}")
    root = pool.take(np.arange(options.root)) if options.root else None
    return World(held_out, rows, lambda device: pool.take(rows(device)), root=root)


def _turbofan(options: DataOptions, path: str) -> World:
    """One engine a device; in a larger fleet some devices have the same engine."""
    if options.drift_classes and options.drift_s:
        raise ConfigError("data.drift_s", "labels that rotate need classes: leave it out")
    engines, held_out = read_turbofan(Path(path))

    def share(device: int) -> Share:
        return engines[device % len(engines)]

    return World(held_out, lambda device: np.arange(len(share(device))), share, RUL_MAX)


def _own(options: DataOptions, seed: int) -> World:
    """A user's functions."""
    give = imported("data.source", options.source)
    if not options.held_out:
        remedy = "is needed with a source of your own: module:function, (generator) -> (x, y)"
        raise ConfigError("data.held_out", remedy)
    held = _checked("data.held_out", imported("data.held_out", options.held_out), DEAL, seed)
    classes = int(held.labels.max()) + 1
    if classes < 2:
        raise ConfigError("data.held_out", "has no class but 0: there is nothing to tell apart")

    @lru_cache(_KEPT_OWN)
    def share(device: int) -> Share:
        found = _checked("data.source", lambda rng: give(device, rng), DRAW, seed, device)
        if int(found.labels.max()) >= classes or found.features.shape[1] != held.features.shape[1]:
            remedy = f"examples of device {device} have classes or widths that held_out has not"
            raise ConfigError("data.source", remedy)
        return one_hot(found.features, found.labels, classes)

    held_out = one_hot(held.features, held.labels, classes)
    return World(held_out, lambda device: np.arange(len(share(device))), share)


def _checked(
    field: str, give: Callable[[np.random.Generator], tuple[object, object]], *stream: int
) -> Examples:
    code, seed, *rest = stream
    found = give(generator(seed, code, *rest))
    try:
        features, labels = found
        return checked_examples(np.asarray(features), np.asarray(labels))
    except (TypeError, ValueError) as exc:
        raise ConfigError(field, f"{exc}") from exc
