"""A Trainer of your own: logistic regression on this device's CSV, in a few lines of numpy."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainer import TrainResult
from schemas.task import TrainOptions


class CsvTrainer:
    """Every column but `label` is a sensor; `label` is 0 or 1. Tensors: w (sensors,), b (1,)."""

    def __init__(self, csv: str, label: str) -> None:
        table = np.genfromtxt(csv, delimiter=",", names=True)
        sensors = [name for name in table.dtype.names or () if name != label]
        x = np.stack([table[name] for name in sensors], axis=1)
        self.y = table[label]
        healthy = x[self.y == 0]
        self.x = (x - healthy.mean(axis=0)) / healthy.std(axis=0)  # against this pump's own habits

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: np.random.Generator,
    ) -> TrainResult:
        """Take epochs of small steps from the fleet's model towards what this pump knows."""
        w, b = tensors["w"].copy(), tensors["b"].copy()
        for _ in range(options.epochs):
            order = rng.permutation(len(self.y))
            for rows in np.array_split(order, -(-len(order) // options.batch_size)):
                error = self._probability(w, b)[rows] - self.y[rows]
                w -= options.learning_rate * (error @ self.x[rows]) / len(rows)
                b -= options.learning_rate * error.mean()
        right = (self._probability(w, b) > 0.5) == self.y
        return TrainResult({"w": w, "b": b}, len(self.y), {"accuracy": float(right.mean())})

    def _probability(self, w: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
        score: NDArray[np.float64] = self.x @ w + b
        return 0.5 + 0.5 * np.tanh(score / 2)  # the logistic function without its overflow
