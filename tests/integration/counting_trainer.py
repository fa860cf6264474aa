"""A trainer that makes the model its own witness: round n of device d adds 1 to one coordinate.

With FedBuff dividing by K and a server rate of K, the model holds, exactly, how often each round
was folded: 1 is right, 0 is lost, 2 is twice. Every round is written down, and synced, before it
is returned; nothing of the product is asked.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainer import TrainResult
from schemas.task import TrainOptions


class CountingTrainer:
    """One coordinate a round; stops (blocks) when the file `stop` is there."""

    def __init__(self, ledger: str, first: int, rounds: int, stop: str, pace_s: float) -> None:
        self._ledger = Path(ledger)
        self._first = first
        self._rounds = rounds
        self._stop = Path(stop)
        self._pace_s = pace_s

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: np.random.Generator,
    ) -> TrainResult:
        done = len(self._ledger.read_text().split()) if self._ledger.exists() else 0
        time.sleep(self._pace_s)
        while self._stop.exists() or done >= self._rounds:
            time.sleep(0.2)
        coordinate = self._first + done
        with self._ledger.open("a") as file:
            file.write(f"{coordinate}\n")
            file.flush()
            os.fsync(file.fileno())
        counts = tensors["counts"].copy()
        counts[coordinate] += 1
        return TrainResult({"counts": counts}, num_examples=1)
