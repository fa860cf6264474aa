"""A server's own judge for the tests: how high the mean of w is."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from schemas.evaluation import Evaluation


class Height:
    """`bad_from`: from this height on it finds everything bad."""

    def __init__(self, bad_from: float) -> None:
        self._bad_from = bad_from

    def evaluate(self, tensors: Mapping[str, NDArray[np.float32]]) -> Evaluation:
        height = float(np.mean(tensors["w"]))
        return Evaluation(100, {"height": height if height < self._bad_from else -1.0})
