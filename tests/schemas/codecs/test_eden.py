from math import pi

import numpy as np
import pytest
from laws import (
    HEAVY,
    codec_holds_itself_down,
    codec_is_unbiased,
    generator,
    refuses_without_allocating,
)

from schemas.codecs import Ask
from schemas.codecs.eden import EDEN, LEVELS
from schemas.delta import peak
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import MAX_PARAMS

TWO = np.zeros(600, dtype=np.float32)
TWO[[3, 500]] = 2, 1


@pytest.mark.parametrize("vector", [HEAVY, TWO], ids=["heavy", "two coordinates"])
@pytest.mark.parametrize("budget", [0, 40, 160])
def test_its_mean_is_the_vector(vector, budget):
    codec_is_unbiased(EDEN, vector, Ask(budget=budget), 300)


def test_where_the_gain_makes_too_much_of_its_variance_it_holds_itself_down():
    codec_holds_itself_down(EDEN, HEAVY, Ask(budget=20))


@pytest.mark.parametrize(
    ("bits", "variance"),
    [
        (0.1, pi / 2 / 0.1 - 1),
        (0.5, pi - 1),
        (1, pi / 2 - 1),
        (2, 0.1331),
        (3, 0.0358),
        (4, 0.0096),
    ],
)
def test_bits_buy_what_the_paper_says(bits, variance):
    vector = (generator().standard_t(3, 16_384) * 0.01).astype(np.float32)
    budget = int(5 + 3 + 2 + bits * vector.size / 8)
    payload = EDEN.encode(vector, Ask(budget=budget), generator())
    left = (EDEN.decode(memoryview(payload), vector.size).values - vector).astype(np.float64)
    found = np.square(left).sum() / np.square(vector.astype(np.float64)).sum()
    assert found == pytest.approx(variance, rel=0.06)


def test_the_levels_are_the_centroids_of_what_is_rounded_to_them():
    """Lloyd and Max: every level is the mean of the normal numbers that are nearest to it."""
    numbers = np.abs(generator().standard_normal(400_000))
    for magnitudes in LEVELS:
        levels = np.array(magnitudes) / 64
        nearest = np.searchsorted((levels[1:] + levels[:-1]) / 2, numbers)
        for i, level in enumerate(levels):
            assert level == pytest.approx(numbers[nearest == i].mean(), abs=0.012)


def test_a_budget_is_filled_to_the_last_byte_until_four_bits_are_sent():
    vector = generator().standard_normal(1000).astype(np.float32)
    least = EDEN.least_bytes(1000)
    assert least == 9
    for budget in (*range(least, 200), 300, 511):
        spare = budget - len(EDEN.encode(vector, Ask(budget=budget), generator()))
        assert 0 <= spare <= 1, "a longer count may leave a byte"
    assert len(EDEN.encode(vector, Ask(budget=9000), generator())) <= 5 + 2 + 2 * 6 + 512


def test_a_message_of_one_bit_each_takes_few_bytes_beside_the_bits():
    vector = generator().standard_normal(9_610).astype(np.float32)
    assert len(EDEN.encode(vector, Ask(), generator())) == 1_225


def test_large_numbers_do_not_overflow_on_the_way():
    vector = np.full(500, 3e37, dtype=np.float32)
    payload = EDEN.encode(vector, Ask(budget=200), generator())
    values = EDEN.decode(memoryview(payload), 500).values
    assert np.isfinite(values).all()
    assert values.mean(dtype=np.float64) == pytest.approx(3e37, rel=0.05)


HEAD = "30" + "00000000" + "40" + "803f"  # 0 bits and one more for all 64


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("30000000", Reason.TRUNCATED),
        ("3000000000", Reason.TRUNCATED),
        (HEAD + "00" * 7, Reason.TRUNCATED),
        (HEAD + "00" * 9, Reason.OVERSIZED),
        ("34" + HEAD[2:] + "00" * 40, Reason.MALFORMED),
        ("28" + HEAD[2:] + "00" * 8, Reason.MALFORMED),
        ("38" + HEAD[2:] + "00" * 8, Reason.MALFORMED),
        ("300000000000803f", Reason.BAD_INDEX),
        ("300000000041803f" + "00" * 9, Reason.BAD_INDEX),
        ("30000000000180bf80", Reason.BAD_NUMBER),
        ("300000000001803f81", Reason.MALFORMED),
    ],
)
def test_refused_is(payload, reason):
    with pytest.raises(WireError) as caught:
        EDEN.decode(memoryview(bytes.fromhex(payload)), 8)
    assert caught.value.reason is reason


@pytest.mark.parametrize("scale", ["807f", "c07f", "7f7f"])
def test_a_scale_that_is_not_finite_passes_the_codec_and_is_seen_by_peak(scale):
    payload = bytes.fromhex(HEAD[:-4] + scale + "00" * 8)
    assert not np.isfinite(peak(EDEN.decode(memoryview(payload), 8).values))


def test_a_short_payload_for_the_largest_model_is_refused_without_allocating():
    payload = bytes.fromhex("8300000000ffffff7f" + "00" * 50)
    refuses_without_allocating(
        lambda: EDEN.decode(memoryview(payload), MAX_PARAMS), Reason.TRUNCATED
    )
