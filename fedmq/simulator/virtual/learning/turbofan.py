"""One turbofan engine a device: how many cycles are left? Reads C-MAPSS' text files.

Saxena et al., "Damage Propagation Modeling for Aircraft Engine Run-to-Failure Simulation", PHM
2008 (NASA C-MAPSS, FD001, public domain). Usual practice: remaining cycles clipped at 125, windows
of 30 cycles, the 14 sensors that vary; judged by the last window of every engine held out.
"""

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fedmq.simulator.virtual.learning.share import Share
from schemas.errors import ConfigError

SENSORS: Final = (2, 3, 4, 7, 8, 9, 11, 12, 13, 14, 15, 17, 20, 21)
WINDOW: Final = 30
RUL_MAX: Final = 125.0

Table = NDArray[np.float32]


def read_turbofan(train: Path) -> tuple[tuple[Share, ...], Share]:
    """Every engine that ran to failure, and those to be judged by.

    The latter are of test_FD001.txt and RUL_FD001.txt beside `train`. Where these are not, every
    fifth engine of `train` is held out, and judged by all of its windows; of fewer than five none
    is, and all are judged by what they are trained on.

    Raises:
        ConfigError: a file cannot be read, or an engine has fewer cycles than a window.
    """
    try:
        return _read(train)
    except (OSError, ValueError) as exc:
        remedy = f"{exc}: give the path of C-MAPSS' train_FD001.txt"
        raise ConfigError("data.source", remedy) from exc


def _read(path: Path) -> tuple[tuple[Share, ...], Share]:
    train = _table(path)
    low, high = train[:, 2:].min(axis=0), train[:, 2:].max(axis=0)
    _scale(train, low, high)
    devices = tuple(_engine(rows, 0.0) for rows in _engines(train))
    other, ends = path.with_name("test_FD001.txt"), path.with_name("RUL_FD001.txt")
    if not (other.is_file() and ends.is_file()):
        kept = tuple(share for i, share in enumerate(devices) if i % 5 != 4)
        return kept, _joined(list(devices[4::5]) or list(devices))
    test = _table(other)
    _scale(test, low, high)
    left = np.loadtxt(ends, dtype=np.float32, ndmin=1)
    last = [_engine(rows, end) for rows, end in zip(_engines(test), left, strict=True)]
    return devices, _joined([Share(share.features[-1:], share.targets[-1:]) for share in last])


def _joined(shares: list[Share]) -> Share:
    return Share(
        np.concatenate([share.features for share in shares]),
        np.concatenate([share.targets for share in shares]),
    )


def _scale(table: Table, low: Table, high: Table) -> None:
    """By the sensors' known ranges: no device tells its own."""
    width = np.where(high > low, high - low, np.float32(1))  # a sensor may stand still
    table[:, 2:] = 2 * (table[:, 2:] - low) / width - 1


def _table(path: Path) -> Table:
    """Engine, cycle, and the 14 sensors that vary."""
    columns = (0, 1, *(sensor + 4 for sensor in SENSORS))
    with path.open(encoding="ascii") as lines:
        if not lines.read(1):
            raise ValueError(f"{path} is empty")
    table = np.loadtxt(path, dtype=np.float32, usecols=columns, ndmin=2)
    if not np.isfinite(table).all():
        raise ValueError(f"{path} holds NaN or infinity")
    return table


def _engines(table: Table) -> list[Table]:
    return np.split(table, np.flatnonzero(np.diff(table[:, 0])) + 1)


def _engine(rows: Table, end: float) -> Share:
    """All windows of one engine that has `end` cycles left at its last row."""
    if len(rows) < WINDOW:
        raise ValueError(f"engine {rows[0, 0]:g} has {len(rows)} cycles, a window {WINDOW}")
    windows = np.lib.stride_tricks.sliding_window_view(rows[:, 2:], WINDOW, axis=0)
    left = end + np.arange(len(rows) - WINDOW, -1, -1, dtype=np.float32)
    features = np.ascontiguousarray(windows.reshape(len(windows), -1))
    return Share(features, (np.minimum(left, RUL_MAX) / np.float32(RUL_MAX))[:, None])
