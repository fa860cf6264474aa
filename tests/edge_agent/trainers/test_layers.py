import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.trainers.layers import SOFTMAX_NAMES, check_layers, layer_names, numbered_names


def tensors(**shapes: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    return {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}


SOFTMAX = tensors(W=(4, 3), b=(3,))
MLP = tensors(W1=(4, 5), b1=(5,), W2=(5, 3), b2=(3,))


def test_names_tell_the_layers() -> None:
    assert layer_names(SOFTMAX) == SOFTMAX_NAMES
    assert layer_names(MLP) == numbered_names(2) == (("W1", "b1"), ("W2", "b2"))


def test_the_order_of_the_tensors_does_not_matter() -> None:
    assert layer_names(dict(reversed(MLP.items()))) == numbered_names(2)


@pytest.mark.parametrize(
    "given",
    [
        {},
        tensors(W1=(4, 3)),
        tensors(W1=(4, 3), b2=(3,)),
        tensors(W=(4, 3), b=(3,), b1=(3,)),
        tensors(W1=(4, 5), b1=(5,), W3=(5, 3), b3=(3,)),
        tensors(kernel=(4, 3), bias=(3,)),
    ],
)
def test_names_that_make_no_layers_are_refused(given: dict[str, NDArray[np.float32]]) -> None:
    with pytest.raises(ValueError, match="are not the layers"):
        layer_names(given)


def test_layers_that_fit_pass() -> None:
    check_layers(SOFTMAX, SOFTMAX_NAMES, width=4, top_label=2)
    check_layers(MLP, numbered_names(2), width=4, top_label=2)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (tensors(W2=(5, 3, 1)), "'W2' has shape"),
        (tensors(b1=(4,)), "'b1' has shape"),
        (tensors(b1=()), "'b1' has shape"),
        (tensors(W2=(6, 3)), "takes 6, W1 gives 5"),
        (tensors(W1=(7, 5)), "takes 7, the examples have 4"),
        (tensors(W2=(5, 2), b2=(2,)), "label 2 in the data, but the model has 2 classes"),
    ],
)
def test_a_layer_that_does_not_fit_is_named(
    change: dict[str, NDArray[np.float32]], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_layers({**MLP, **change}, numbered_names(2), width=4, top_label=2)
