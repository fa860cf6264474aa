"""Which tensors make which layer: told by their names, checked by their shapes.

{"W": (d, c), "b": (c,)}                                         softmax regression
{"W1": (d, h), "b1": (h,), "W2": (h, c), "b2": (c,)}             one hidden layer, and so on
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Real: TypeAlias = NDArray[np.floating]
"""float32 in training; float64 where a test wants finite differences."""

Tensors: TypeAlias = Mapping[str, Real]
LayerNames: TypeAlias = tuple[tuple[str, str], ...]
"""(weights, bias) of every layer, from the features up."""

SOFTMAX_NAMES: LayerNames = (("W", "b"),)


def numbered_names(depth: int) -> LayerNames:
    """Name `depth` layers: W1, b1, W2, b2, ..."""
    return tuple((f"W{i}", f"b{i}") for i in range(1, depth + 1))


def layer_names(tensors: Tensors) -> LayerNames:
    """Find the layers. Raises ValueError when names are missing, unknown or do not fit."""
    names = SOFTMAX_NAMES if "W" in tensors else numbered_names(max(1, len(tensors) // 2))
    expected = [name for layer in names for name in layer]
    if set(tensors) != set(expected):
        raise ValueError(f"tensors {sorted(tensors)} are not the layers {expected}")
    return names


def check_layers(tensors: Tensors, names: LayerNames, width: int, top_label: int) -> None:
    """Check that layers chain, take `width` features and can answer `top_label`.

    Raises:
        ValueError: they do not; names the tensor.
    """
    for weights, bias in names:
        _check_layer(tensors, weights, bias)
    for (below, _), (above, _) in pairwise(names):
        _check_width(tensors, above, tensors[below].shape[1], f"{below} gives")
    _check_width(tensors, names[0][0], width, "the examples have")
    classes = tensors[names[-1][0]].shape[1]
    if top_label >= classes:
        raise ValueError(f"label {top_label} in the data, but the model has {classes} classes")


def _check_layer(tensors: Tensors, weights: str, bias: str) -> None:
    shape, bias_shape = tensors[weights].shape, tensors[bias].shape
    if len(shape) != 2:
        raise ValueError(f"tensor {weights!r} has shape {shape}, a layer needs (inputs, outputs)")
    if bias_shape != shape[1:]:
        raise ValueError(f"tensor {bias!r} has shape {bias_shape}, {weights!r} asks {shape[1:]}")


def _check_width(tensors: Tensors, weights: str, width: int, who: str) -> None:
    shape = tensors[weights].shape
    if shape[0] != width:
        raise ValueError(f"tensor {weights!r} of shape {shape} takes {shape[0]}, {who} {width}")
