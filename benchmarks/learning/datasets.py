"""What the devices know: digits dealt unevenly, or one turbofan engine each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.trainers.examples import Examples
from fedmq.demo.digits import CLASSES, digits_fleet
from fedmq.simulator.virtual.learning.share import Share, one_hot
from fedmq.simulator.virtual.learning.turbofan import read_turbofan

TURBOFAN: Final = Path("/work/shared/data/turbofan")

__all__ = ["Share", "World", "digits_world", "turbofan_world"]


@dataclass(frozen=True, slots=True)
class World:
    """Who knows what, and what nobody has seen."""

    devices: tuple[Share, ...]
    held_out: Share


def digits_world(rng: np.random.Generator, devices: int = 20, alpha: float = 0.3) -> World:
    """The demo's deal: Dirichlet over labels, a fifth held out."""
    fleet = digits_fleet(devices, rng, alpha=alpha)
    return World(tuple(map(_share, fleet.devices)), _share(fleet.held_out))


def _share(examples: Examples) -> Share:
    return one_hot(examples.features, examples.labels, CLASSES)


def turbofan_world(folder: Path = TURBOFAN) -> World:
    """100 engines to failure as 100 devices, 100 others to be judged by. Raises ConfigError."""
    return World(*read_turbofan(folder / "train_FD001.txt"))
