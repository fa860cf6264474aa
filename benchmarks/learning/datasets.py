"""What the devices know: digits dealt unevenly, or one turbofan engine each.

Saxena et al., "Damage Propagation Modeling for Aircraft Engine Run-to-Failure Simulation", PHM
2008 (NASA C-MAPSS, FD001, public domain). Usual practice: remaining cycles clipped at 125, windows
of 30 cycles, the 14 sensors that vary; judged by the last window of every engine held out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainers.examples import Examples
from fedmq.demo.digits import digits_fleet

TURBOFAN: Final = Path("/work/shared/data/turbofan")
SENSORS: Final = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)
WINDOW: Final = 30
RUL_MAX: Final = 125.0

Table = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Share:
    """Examples ready to train on: features (n, d), targets (n, classes) one-hot or (n, 1)."""

    features: NDArray[np.float32]
    targets: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class World:
    """Who knows what, and what nobody has seen."""

    devices: tuple[Share, ...]
    held_out: Share


def digits_world(rng: np.random.Generator, devices: int = 20, alpha: float = 0.3) -> World:
    """The demo's deal: Dirichlet over labels, a fifth held out."""
    fleet = digits_fleet(devices, rng, alpha=alpha)
    return World(tuple(map(_one_hot, fleet.devices)), _one_hot(fleet.held_out))


def _one_hot(examples: Examples) -> Share:
    return Share(examples.features, np.eye(10, dtype=np.float32)[examples.labels])


def turbofan_world(folder: Path = TURBOFAN) -> World:
    """100 engines to failure as 100 devices, 100 others to be judged by. Raises OSError."""
    train, test = (_table(folder / f"{part}_FD001.txt") for part in ("train", "test"))
    ends = np.loadtxt(folder / "RUL_FD001.txt", dtype=np.float32, ndmin=1)
    low, high = train[:, 2:].min(axis=0), train[:, 2:].max(axis=0)
    for table in (train, test):  # by the sensors' known ranges: no device tells its own
        table[:, 2:] = 2 * (table[:, 2:] - low) / (high - low) - 1
    devices = tuple(_engine(rows, 0.0) for rows in _engines(train))
    last = [_engine(rows, end) for rows, end in zip(_engines(test), ends, strict=True)]
    held_out = Share(
        np.concatenate([share.features[-1:] for share in last]),
        np.concatenate([share.targets[-1:] for share in last]),
    )
    return World(devices, held_out)


def _table(path: Path) -> Table:
    """Engine, cycle, and the 14 sensors that vary."""
    columns = (0, 1, *(sensor + 4 for sensor in SENSORS))
    return np.loadtxt(path, dtype=np.float32, usecols=columns)


def _engines(table: Table) -> list[Table]:
    return np.split(table, np.flatnonzero(np.diff(table[:, 0])) + 1)


def _engine(rows: Table, end: float) -> Share:
    """All windows of one engine that has `end` cycles left at its last row."""
    windows = np.lib.stride_tricks.sliding_window_view(rows[:, 2:], WINDOW, axis=0)
    left = end + np.arange(len(rows) - WINDOW, -1, -1, dtype=np.float32)
    features = np.ascontiguousarray(windows.reshape(len(windows), -1))
    return Share(features, (np.minimum(left, RUL_MAX) / np.float32(RUL_MAX))[:, None])
