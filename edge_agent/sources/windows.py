"""Readings in a row, cut into samples: of a table at once, of a live topic one by one. Pure.

Sample i begins at reading i * stride and ends window - 1 readings later; its label is that of
`horizon` readings after its last.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.sources.samples import Array
from schemas.inputs import InputOptions


def samples_in(readings: int, how: InputOptions) -> int:
    """How many samples a table of so many readings gives."""
    beginnings = readings - how.window - how.horizon + 1
    return max(0, -(-beginnings // how.stride))


def windowed(x: Array, y: Array | None, how: InputOptions) -> tuple[Array, Array | None]:
    """Cut a table into samples.

    Args:
        x: readings, shape (n, features).
        y: their labels, shape (n,); None: there are none.
        how: window, stride and horizon.

    Returns:
        Samples, shape (m, window, features), or (m, features) with a window of 1; labels, (m,).
    """
    count = len(x) - how.window - how.horizon + 1
    if count <= 0:
        nothing = x[:0] if how.window == 1 else np.empty((0, how.window, x.shape[1]), x.dtype)
        return nothing, None if y is None else y[:0]
    cut: Array = x[: count : how.stride]
    if how.window > 1:
        views = np.lib.stride_tricks.sliding_window_view(x, how.window, axis=0)
        cut = np.ascontiguousarray(views[: count : how.stride].transpose(0, 2, 1))
    last = how.window - 1 + how.horizon
    return cut, None if y is None else y[last : last + count : how.stride]


class Windower:
    """Makes samples of readings as they come.

    Args:
        how: window, stride and horizon.
        dtype: of the windows: float32, or float64 for whole numbers.
    """

    def __init__(self, how: InputOptions, dtype: type[np.floating] = np.float32) -> None:
        self._how, self._dtype = how, dtype
        self._kept: deque[Sequence[float]] = deque(maxlen=how.window + how.horizon)
        self._count = 0

    def push(self, reading: Sequence[float]) -> NDArray[Any] | None:
        """Take a reading; the window that is complete with it, shape (window, features), if any."""
        self._kept.append(reading)
        self._count += 1
        beyond = self._count - self._how.window - self._how.horizon
        if beyond < 0 or beyond % self._how.stride:
            return None
        return np.array([self._kept[i] for i in range(self._how.window)], self._dtype)

    def cut(self) -> None:
        """Readings were lost: no sample spans the gap."""
        self._kept.clear()
        self._count = 0
