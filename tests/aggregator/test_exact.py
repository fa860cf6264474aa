"""Sums that every CPU rounds alike: a spelt-out order, and close to the exact ones."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, VECTORS, generator

from aggregator.exact import SPAN, inner, squared_distance, squared_norm, tree_sum, tree_sums


def halves(values: list[float]) -> float:
    """The order that is promised, on Python's own floats."""
    while len(values) > 1:
        half = len(values) // 2
        rest = values[half : len(values) - half]
        values = [a + b for a, b in zip(values[:half], values[-half:], strict=True)] + rest
    return values[0] if values else 0.0


@LEAN
@given(values=st.lists(st.floats(-1e200, 1e200), max_size=70))
def test_a_sum_adds_the_second_half_to_the_first_until_one_is_left(values):
    array = np.array(values, dtype=np.float64)
    assert tree_sum(array) == halves(values)
    assert array.tolist() == values


def test_rows_are_summed_each_by_itself():
    values = generator().standard_normal((3, 37))
    assert tree_sums(values.copy()).tolist() == [tree_sum(row) for row in values]
    assert tree_sums(np.empty((2, 0))).tolist() == [0.0, 0.0]


@LEAN
@given(vector=VECTORS)
def test_a_squared_length_is_the_exact_one_but_for_rounding(vector):
    exact = sum(Fraction(float(x)) ** 2 for x in vector)
    assert abs(Fraction(squared_norm(vector)) - exact) <= exact * Fraction(1, 10**14)


def test_long_vectors_are_read_in_blocks_whose_sums_are_added_in_order():
    rng = generator(3)
    one, other = (rng.standard_normal(2 * SPAN + 5).astype(np.float32) for _ in range(2))
    a, b = one.astype(np.float64), other.astype(np.float64)
    blocks = [slice(0, SPAN), slice(SPAN, 2 * SPAN), slice(2 * SPAN, None)]
    assert inner(one, other) == sum(tree_sum((a * b)[span]) for span in blocks)
    assert squared_distance(one, other) == sum(tree_sum(((a - b) ** 2)[span]) for span in blocks)
    assert np.isclose(inner(one, other), np.dot(a, b), rtol=1e-12)


def test_squares_of_the_largest_numbers_do_not_overflow():
    assert squared_norm(np.full(9, 3e38, np.float32)) < 1e78
