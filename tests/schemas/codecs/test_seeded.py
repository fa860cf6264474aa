import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, U32, generator

from schemas.codecs.seeded import minus_signs, new_seed, subset, words

WRAP = (1 << 64) - 1


def _word(seed: int, lane: int, i: int) -> int:
    """One word after another, in Python's integers."""
    z = ((lane << 32) + seed + (i + 1) * 0x9E3779B97F4A7C15) & WRAP
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WRAP
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WRAP
    return z ^ z >> 31


def test_the_words_are_those_of_splitmix64():
    assert words(1234567, 0, 5).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@LEAN
@given(seed=U32, lane=st.integers(0, 7), count=st.integers(0, 70), start=st.integers(0, 1 << 28))
def test_a_word_depends_on_seed_lane_and_place_alone(seed, lane, count, start):
    expected = [_word(seed, lane, start + i) for i in range(count)]
    assert words(seed, lane, count, start).tolist() == expected


@LEAN
@given(seed=U32, count=st.integers(1, 200))
def test_64_signs_are_the_bits_of_one_word_from_the_lowest_up(seed, count):
    expected = [bool(_word(seed, 1, j // 64) >> j % 64 & 1) for j in range(count)]
    assert minus_signs(seed, 1, count).tolist() == expected


@LEAN
@given(seed=U32, size=st.integers(1, 150), data=st.data())
def test_a_subset_marks_places_one_by_one_or_those_that_are_left_out(seed, size, data):
    count = data.draw(st.integers(0, size))
    marked, i = set(), 0
    while len(marked) < min(count, size - count):
        marked.add((_word(seed, 2, i) >> 28) * size >> 36)
        i += 1
    drawn = subset(seed, 2, count, size)
    assert drawn.sum() == count
    expected = marked if 2 * count <= size else set(range(size)) - marked
    assert set(np.flatnonzero(drawn).tolist()) == expected


def test_every_place_is_taken_equally_often_alone_and_with_every_other():
    drawn = np.array([subset(seed, 0, 3, 8) for seed in range(3000)], dtype=np.float64)
    together = drawn.T @ drawn / 3000
    alone = np.diag(together)
    assert np.abs(alone - 3 / 8).max() < 4 * np.sqrt(3 / 8 * 5 / 8 / 3000)
    pairs = together[~np.eye(8, dtype=bool)]
    assert np.abs(pairs - 3 / 8 * 2 / 7).max() < 4 * np.sqrt(6 / 56 * 50 / 56 / 3000)


def test_a_seed_fits_four_bytes():
    rng = generator()
    seeds = {new_seed(rng) for _ in range(50)}
    assert len(seeds) == 50
    assert max(seeds) < 1 << 32
