from typing import Any

import numpy as np
import pytest

from edge_agent.trainers.examples import checked_examples

NAN, INF = float("nan"), float("inf")


def test_examples_are_float32_rows_and_int64_labels() -> None:
    examples = checked_examples([[1, 2], [3, 4], [5, 6]], np.array([0, 1, 1], dtype=np.uint8))
    assert examples.features.shape == (3, 2)
    assert examples.features.dtype == np.float32
    assert examples.labels.shape == (3,)
    assert examples.labels.dtype == np.int64
    assert len(examples) == 3


def test_images_are_laid_flat() -> None:
    assert checked_examples(np.zeros((5, 8, 8)), np.zeros(5)).features.shape == (5, 64)


def test_whole_numbers_may_come_as_floats_or_bools() -> None:
    assert checked_examples([[1], [2]], [0.0, 2.0]).labels.tolist() == [0, 2]
    assert checked_examples([[1], [2]], [False, True]).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("features", "labels", "complaint"),
    [
        ([], [], "features are empty"),
        ([[]], [0], "features are empty"),
        ([[1]], [], "labels are empty"),
        ([1, 2], [0, 1], "the first axis must be the example"),
        ([[1], [2]], [0], "2 rows of features but 1 labels"),
        ([[NAN]], [0], "features hold NaN"),
        ([[-INF]], [0], "features hold NaN or infinity"),
        ([[1e39]], [0], "features hold NaN or infinity"),
        ([[1]], [NAN], "labels hold NaN"),
        ([[1]], [0.5], "whole numbers"),
        ([[1]], [-1], "whole numbers"),
        ([[1]], [[0]], "labels have shape"),
        ([["a"]], [0], "features are of type"),
        ([[1]], ["a"], "labels are of type"),
        ([[1j]], [0], "features are of type complex128"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(features: Any, labels: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        checked_examples(features, labels)
