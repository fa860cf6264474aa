"""Sums of squares and products of float32 vectors, the same bits on every CPU. Pure.

A library's sum or dot product adds in an order that its authors, or the CPU, choose. Here every
product is taken elementwise in float64, where squares of float32 are exact, and sums are taken by
halving: the second half is added to the first, elementwise, until one number is left. A vector is
read in blocks, whose sums are added up in order.
"""

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.params import Params

SPAN: Final = 16_384
"""Elements of a block. It is part of the arithmetic: another size rounds otherwise."""

Doubles: TypeAlias = NDArray[np.float64]


def tree_sums(values: Doubles) -> Doubles:
    """Sum along the last axis by halving: float64, shape (..., n) -> (...). Overwrites `values`."""
    count = values.shape[-1]
    if count == 0:
        return np.zeros(values.shape[:-1], dtype=np.float64)
    while count > 1:
        half = count // 2
        values[..., :half] += values[..., count - half : count]
        count -= half
    return values[..., 0].copy()


def tree_sum(values: Doubles) -> float:
    """Sum float64 values, shape (n,), by halving; 0 of none. `values` stay as they are."""
    return float(tree_sums(values.copy()))


def inner(one: Params, other: Params) -> float:
    """The inner product of two vectors of one shape (size,)."""
    total = 0.0
    for start in range(0, one.size, SPAN):
        product = one[start : start + SPAN].astype(np.float64)
        product *= other[start : start + SPAN]
        total += float(tree_sums(product))
    return total


def squared_norm(vector: Params) -> float:
    """The squared Euclidean length of a vector, shape (size,)."""
    return inner(vector, vector)


def squared_distance(one: Params, other: Params) -> float:
    """The squared Euclidean distance of two vectors of one shape (size,)."""
    total = 0.0
    for start in range(0, one.size, SPAN):
        apart = one[start : start + SPAN].astype(np.float64)
        apart -= other[start : start + SPAN]
        apart *= apart
        total += float(tree_sums(apart))
    return total
