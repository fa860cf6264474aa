import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from laws import LEAN, generator

from schemas import delta as module
from schemas.delta import Dense, Sparse, add_scaled, peak, to_dense

WEIGHTS = [1.0, 0.1, -2.5, 1 / 3, 0.0]


@pytest.fixture
def _small_blocks(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)


def _one_by_one(total, pairs, weight):
    """The reference: every product and every sum rounded to float32, in order."""
    expected, scale = total.copy(), np.float32(weight)
    for index, value in pairs:
        expected[index] = np.float32(expected[index] + np.float32(scale * value))
    return expected


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 17, 40])
def test_a_dense_delta_is_added_bit_for_bit_as_one_by_one(size, weight):
    rng = generator(size)
    total = rng.standard_normal(size, dtype=np.float32)
    values = rng.standard_normal(size, dtype=np.float32)
    values.flags.writeable = False
    expected = _one_by_one(total, enumerate(values), weight)
    add_scaled(total, Dense(values), weight)
    assert total.tobytes() == expected.tobytes()


@pytest.mark.parametrize("beside", [-1, 0, 1])
def test_the_real_block_changes_no_bit_of_the_sum(beside):
    size, rng = module.BLOCK + beside, generator(1)
    total = rng.standard_normal(size, dtype=np.float32)
    values = rng.standard_normal(size, dtype=np.float32)
    expected = total + np.float32(0.1) * values
    add_scaled(total, Dense(values), 0.1)
    assert total.tobytes() == expected.tobytes()


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("count", [1, 7, 30])
def test_a_sparse_delta_is_added_bit_for_bit_as_one_by_one(count, weight):
    rng = generator(count)
    total = rng.standard_normal(30, dtype=np.float32)
    indices = np.sort(rng.permutation(30)[:count]).astype(np.int64)
    values = rng.standard_normal(count, dtype=np.float32)
    expected = _one_by_one(total, zip(indices, values, strict=True), weight)
    add_scaled(total, Sparse(indices, values), weight)
    assert total.tobytes() == expected.tobytes()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_a_multiset_adds_every_repetition_in_order(weight):
    rng = generator(3)
    total = rng.standard_normal(10, dtype=np.float32)
    indices = rng.integers(0, 10, 500)
    values = rng.standard_normal(500, dtype=np.float32)
    expected = _one_by_one(total, zip(indices, values, strict=True), weight)
    add_scaled(total, Sparse(indices, values), weight)
    assert total.tobytes() == expected.tobytes()


def test_the_weight_is_rounded_to_float32_first():
    total = np.zeros(1, dtype=np.float32)
    add_scaled(total, Dense(np.array([3.0], dtype=np.float32)), 0.1)
    assert total[0] == np.float32(0.1) * np.float32(3.0)


def test_to_dense_is_a_fresh_array():
    values = np.ones(3, dtype=np.float32)
    spelt = to_dense(Dense(values), 3)
    spelt[0] = 5
    assert values[0] == 1
    sparse = Sparse(np.array([2]), np.array([4.0], dtype=np.float32))
    assert to_dense(sparse, 4).tolist() == [0, 0, 4, 0]


@LEAN
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=1, max_side=40)))
def test_peak_is_the_largest_magnitude_and_tells_whether_all_is_finite(values):
    highest = peak(values)
    assert math.isfinite(highest) == bool(np.isfinite(values).all())
    if math.isfinite(highest):
        assert highest == np.abs(values).max()


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, 8, 16])
def test_peak_sees_one_bad_number_anywhere(place, number):
    values = np.ones(17, dtype=np.float32)
    values[place] = number
    assert not math.isfinite(peak(values))


@pytest.mark.usefixtures("_small_blocks")
def test_peak_sees_nan_behind_infinity_and_zero_in_nothing():
    assert math.isnan(peak(np.array([math.inf] + [0] * 8 + [math.nan], dtype=np.float32)))
    assert peak(np.array([], dtype=np.float32)) == 0
    assert peak(np.array([1.0] * 8 + [-3.0], dtype=np.float32)) == 3
