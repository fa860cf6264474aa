"""How good answers are: the losses of a bundle, and what people read beside them. Pure.

The same formulas as the training step has, in numpy: the mean over all elements; Huber's delta is
1 (Huber, "Robust Estimation of a Location Parameter", 1964).
"""

import numpy as np
from numpy.typing import NDArray

from edge_agent.trainers.network import log_probabilities
from schemas.bundle import CLASSES, Loss

Real = NDArray[np.floating]


def mean_loss(loss: Loss, answers: Real, labels: NDArray[np.generic]) -> float:
    """The mean loss of answers, shape (n, ...).

    Args:
        loss: which one.
        answers: float, shape (n, classes, ...) for classes, else (n, ...).
        labels: int64, shape (n,), for classes, else as answers.
    """
    given = answers.astype(np.float64)
    if loss in CLASSES:
        logs = given if loss == "nll" else log_probabilities(given)
        return -float(np.mean(logs[np.arange(len(labels)), labels.astype(np.int64)]))
    told = labels.astype(np.float64)
    off = given - told
    match loss:
        case "bce-with-logits":
            each = np.maximum(given, 0) - given * told + np.log1p(np.exp(-np.abs(given)))
        case "mae":
            each = np.abs(off)
        case "huber":
            each = np.where(np.abs(off) <= 1, off * off / 2, np.abs(off) - 0.5)
        case _:
            each = off * off
    return float(np.mean(each))


def figures(loss: Loss, answers: Real, labels: NDArray[np.generic]) -> dict[str, float]:
    """`accuracy` of classes, of yes and no; `rmse` of numbers, in the label's own unit."""
    if loss in CLASSES:
        return {"accuracy": float(np.mean(answers.argmax(axis=1) == labels))}
    if loss == "bce-with-logits":
        return {"accuracy": float(np.mean((answers > 0) == (labels.astype(np.float64) > 0.5)))}
    off = answers.astype(np.float64) - labels.astype(np.float64)
    return {"rmse": float(np.sqrt(np.mean(off * off)))}
