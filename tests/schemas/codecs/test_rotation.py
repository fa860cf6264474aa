import numpy as np
import pytest
from laws import generator

from schemas.codecs.rotation import block_sizes, count_blocks, filled, grains, rotate, rotate_back
from schemas.codecs.seeded import minus_signs

SIZES = (1, 64, 65, 100, 9_610, 65_536, 65_537, 99_530, 1_000_000)


@pytest.mark.parametrize("size", SIZES)
def test_blocks_are_powers_of_two_that_cover_the_vector_and_less_than_as_much_again(size):
    for grain in grains(size):
        sizes = block_sizes(filled(size, grain))
        assert len(sizes) == count_blocks(filled(size, grain))
        assert all(64 <= block <= 65_536 and block.bit_count() == 1 for block in sizes)
        assert sizes == sorted(sizes, reverse=True)
        assert size <= sum(sizes) < max(65, 2 * size)
    assert filled(size, 6) - size < 64


def test_there_and_back_is_the_vector_times_the_square_of_its_block():
    vector = generator().integers(-9, 9, 64 + 256).astype(np.float32)
    turned = vector.copy()
    rotate(turned, 5)
    rotate_back(turned, 5)
    squares = np.repeat([256.0**2, 64.0**2], [256, 64])
    assert (turned == vector * squares).all(), "small integers: exact"


def test_length_grows_by_the_size_of_the_block():
    vector = generator().standard_normal(4096).astype(np.float32)
    turned = vector.copy()
    rotate(turned, 5)
    assert np.linalg.norm(turned) == pytest.approx(4096 * np.linalg.norm(vector), rel=1e-5)


@pytest.mark.parametrize("heavy", [{0: 1.0}, {0: 2.0, 70: 1.0}, {5: 1.0, 6: 1.0, 7: 1.0}])
def test_a_few_heavy_coordinates_become_as_good_as_normal(heavy):
    turned = np.zeros((40, 4096), dtype=np.float32)
    for seed, row in enumerate(turned):
        row[list(heavy)] = list(heavy.values())
        rotate(row, seed)
    turned /= np.sqrt(np.mean(turned.astype(np.float64) ** 2))
    assert np.mean(np.abs(turned)) == pytest.approx(np.sqrt(2 / np.pi), rel=0.01)
    assert np.mean(turned.astype(np.float64) ** 4) == pytest.approx(3.0, rel=0.05)


def test_the_butterfly_sums_in_the_order_that_is_written():
    """The same steps one by one, in float32: not a bit may differ."""
    vector = (generator().standard_normal(256) * 10).astype(np.float32)
    slow = vector.copy()
    for lane in (0, 1):
        slow = np.where(minus_signs(9, lane, 256), -slow, slow)
        half = 128
        while half:
            for j in range(256):
                if not j & half:
                    slow[j], slow[j + half] = slow[j] + slow[j + half], slow[j] - slow[j + half]
            half //= 2
    rotate(vector, 9)
    assert vector.tobytes() == slow.tobytes()
