from math import log

import numpy as np
import pytest

from edge_agent.trainers import accuracy, cross_entropy, predict

IDENTITY = {"W": np.eye(2, dtype=np.float32), "b": np.zeros(2, dtype=np.float32)}
ROWS = np.array([[1, 0], [0, 1], [3, 1]], dtype=np.float32)


def test_predict_takes_the_likeliest_class() -> None:
    assert predict(IDENTITY, ROWS).tolist() == [0, 1, 0]


def test_hidden_layers_cut_what_is_negative() -> None:
    tensors = {
        "W1": np.array([[1.0, -1.0]], dtype=np.float32),
        "b1": np.zeros(2, dtype=np.float32),
        "W2": np.eye(2, dtype=np.float32),
        "b2": np.zeros(2, dtype=np.float32),
    }
    assert predict(tensors, np.array([[2], [-2]], dtype=np.float32)).tolist() == [0, 1]


def test_accuracy_is_the_share_of_right_predictions() -> None:
    assert accuracy(IDENTITY, ROWS, np.array([0, 1, 1])) == pytest.approx(2 / 3)


def test_an_undecided_model_loses_the_logarithm_of_the_classes() -> None:
    undecided = {"W": np.zeros((2, 4), dtype=np.float32), "b": np.zeros(4, dtype=np.float32)}
    assert cross_entropy(undecided, ROWS, np.array([0, 1, 3])) == pytest.approx(log(4))


def test_a_sure_and_right_model_loses_nothing() -> None:
    sure = {"W": 1000 * IDENTITY["W"], "b": IDENTITY["b"]}
    assert cross_entropy(sure, ROWS, np.array([0, 1, 0])) == 0
