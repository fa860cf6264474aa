import struct

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
from schemas.codecs.qsgd import QSGD
from schemas.delta import peak
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import MAX_PARAMS

PLAIN = generator(3).standard_normal(800).astype(np.float32)


@pytest.mark.parametrize(
    ("vector", "budget"),
    [(PLAIN, 0), (PLAIN, 12), (PLAIN, 50), (PLAIN, 300), (HEAVY, 0), (HEAVY, 30), (HEAVY, 200)],
)
def test_its_mean_is_the_vector_and_stays_it_when_payloads_are_cut_to_fit(vector, budget):
    codec_is_unbiased(QSGD, vector, Ask(budget=budget), 500)


def test_where_the_gain_makes_too_much_of_its_variance_it_holds_itself_down():
    codec_holds_itself_down(QSGD, PLAIN, Ask(budget=50))


def test_without_a_budget_the_norm_has_four_levels():
    payload = QSGD.encode(PLAIN, Ask(), generator())
    delta = QSGD.decode(memoryview(payload), PLAIN.size)
    unit = np.linalg.norm(PLAIN) / 4
    levels = np.abs(delta.values) / unit
    assert set(np.rint(levels).tolist()) == {1.0}
    assert levels == pytest.approx(1.0, rel=2.0**-7)
    assert (np.sign(delta.values) == np.sign(PLAIN[delta.indices])).all()
    assert delta.indices.size == pytest.approx(
        4 * np.abs(PLAIN / np.linalg.norm(PLAIN)).sum(), rel=0.2
    )


@pytest.mark.parametrize("budget", [40, 103, 210, 1224, 4000])
def test_a_budget_is_filled_as_well_as_chance_allows(budget):
    vector = (generator().standard_t(3, 9_610) * 0.01).astype(np.float32)
    rng = generator(4)
    lengths = [len(QSGD.encode(vector, Ask(budget=budget), rng)) for _ in range(12)]
    assert max(lengths) <= budget
    assert np.mean(lengths) > 0.85 * budget


def test_more_bytes_are_finer_levels():
    distances = []
    for budget in (20, 60, 200, 600, 2000):
        payload = QSGD.encode(HEAVY, Ask(budget=budget), generator())
        delta = QSGD.decode(memoryview(payload), HEAVY.size)
        left = HEAVY.astype(np.float64)
        left[delta.indices] -= delta.values
        distances.append(np.linalg.norm(left))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 1e-3 * distances[0]


@pytest.mark.parametrize("number", [3e38, -1e-44, 1e-45])
def test_numbers_at_either_end_are_encoded_within_the_least_budget(number):
    for size in (1, 300):
        vector = np.full(size, number, dtype=np.float32)
        payload = QSGD.encode(vector, Ask(budget=QSGD.least_bytes(size)), generator())
        assert len(payload) <= QSGD.least_bytes(size)
        assert np.isfinite(peak(QSGD.decode(memoryview(payload), size).values))


def _payload(count: int, bits: str, unit: int = 0x3F80) -> memoryview:
    spare = -len(bits) % 8
    octets = int("1" + bits + "0" * spare, 2).to_bytes(1 + (len(bits) + spare) // 8, "big")[1:]
    return memoryview(struct.pack("<HB", unit, count) + octets)


GAPS_0_LEVELS_1 = "0000000001"
TWO = GAPS_0_LEVELS_1 + "01001" + "10" + "10110"
"""Gaps 1 and 2, minus and plus, levels less 1: quotients 0 and 1, remainders 1 and 0."""


def test_the_bits_are_gaps_then_signs_then_levels():
    delta = QSGD.decode(_payload(2, TWO), 5)
    assert delta.indices.tolist() == [1, 4]
    assert delta.values.tolist() == [-2.0, 3.0]


@pytest.mark.parametrize(
    ("what", "payload", "reason"),
    [
        ("half a unit", memoryview(b"\x80"), Reason.TRUNCATED),
        ("no count", memoryview(b"\x80\x3f"), Reason.TRUNCATED),
        ("a negative unit", _payload(2, TWO, unit=0xBF80), Reason.BAD_NUMBER),
        ("an index out of range", _payload(2, "00000" "00000" "01" "0001" "00" "11"),
         Reason.BAD_INDEX),
        ("more than there are", _payload(6, GAPS_0_LEVELS_1 + "1" * 60), Reason.BAD_INDEX),
        ("no parameters", _payload(2, ""), Reason.TRUNCATED),
        ("a gap too few", _payload(2, GAPS_0_LEVELS_1 + "01"), Reason.TRUNCATED),
        ("no signs", _payload(2, GAPS_0_LEVELS_1 + "01" "000001"), Reason.TRUNCATED),
        ("no levels", _payload(2, GAPS_0_LEVELS_1 + "01" "001" "10"), Reason.TRUNCATED),
        ("spare bits", _payload(2, TWO + "1"), Reason.MALFORMED),
        ("spare bytes", _payload(2, TWO + "0" * 12), Reason.OVERSIZED),
        ("spare bytes after nothing", _payload(0, "0"), Reason.OVERSIZED),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_refused_is(what, payload, reason):
    with pytest.raises(WireError) as caught:
        QSGD.decode(payload, 5)
    assert caught.value.reason is reason


@pytest.mark.parametrize("parameter", ["00000", "11111"])
def test_a_count_that_the_bytes_do_not_have_is_refused_without_allocating(parameter):
    head = struct.pack("<H", 0x3F80) + bytes.fromhex("ffffff7f")
    bits = int(parameter + parameter + "1" * 62, 2).to_bytes(9, "big")
    refuses_without_allocating(
        lambda: QSGD.decode(memoryview(head + bits), MAX_PARAMS), Reason.TRUNCATED
    )


@pytest.mark.parametrize("unit", [0x7F80, 0x7FC0, 0x7F7F])
def test_a_unit_that_is_not_finite_passes_the_codec_and_is_seen_by_peak(unit):
    assert not np.isfinite(peak(QSGD.decode(_payload(2, TWO, unit), 5).values))
