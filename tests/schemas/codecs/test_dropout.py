import numpy as np
import pytest
from laws import (
    HEAVY,
    codec_holds_itself_down,
    codec_is_unbiased,
    generator,
    refuses_without_allocating,
)

from schemas.codecs import Ask, CodecOptions
from schemas.codecs.dropout import DROPOUT
from schemas.codecs.seeded import subset
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import MAX_PARAMS


@pytest.mark.parametrize("ask", [Ask(CodecOptions(density=0.3)), Ask(budget=40)])
def test_its_mean_is_the_vector(ask):
    codec_is_unbiased(DROPOUT, HEAVY, ask, 400)


def test_where_the_gain_makes_too_much_of_its_variance_it_holds_itself_down():
    vector = generator().standard_normal(600).astype(np.float32)
    codec_holds_itself_down(DROPOUT, vector, Ask(budget=40))


@pytest.mark.parametrize("density", [0.25, 0.9])
def test_a_share_is_sent_multiplied_by_what_one_of_it_stands_for(density):
    vector = np.arange(1, 101, dtype=np.float32)
    payload = DROPOUT.encode(vector, Ask(CodecOptions(density=density)), generator())
    seed = int.from_bytes(payload[:4], "little")
    delta = DROPOUT.decode(memoryview(payload), 100)
    count = round(100 * density)
    assert payload[4] == count
    assert delta.indices.tolist() == np.flatnonzero(subset(seed, 0, count, 100)).tolist()
    expected = vector[delta.indices] / density
    assert (np.abs(delta.values - expected) <= 1.01 * 100 / density / 127).all()


def test_a_budget_is_filled_to_the_last_byte_until_all_is_sent():
    vector = generator().standard_normal(2000).astype(np.float32)
    for budget in (*range(8, 300), 1034, 1500, 2000):
        spare = budget - len(DROPOUT.encode(vector, Ask(budget=budget), generator()))
        assert 0 <= spare <= 2, "a byte of the count, or the scale of a new block"
    assert len(DROPOUT.encode(vector, Ask(budget=4000), generator())) == 4 + 2 + 4 + 2000


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ("00000000", Reason.TRUNCATED),
        ("0000000000", Reason.BAD_INDEX),
        ("0000000009803f010203040506070809", Reason.BAD_INDEX),
        ("0000000002803f01", Reason.TRUNCATED),
        ("0000000002803f010203", Reason.OVERSIZED),
        ("0000000002803f0180", Reason.BAD_NUMBER),
        ("000000008200803f0101", Reason.MALFORMED),
    ],
)
def test_refused_is(payload, reason):
    with pytest.raises(WireError) as caught:
        DROPOUT.decode(memoryview(bytes.fromhex(payload)), 8)
    assert caught.value.reason is reason


def test_a_count_that_the_bytes_do_not_have_is_refused_without_allocating():
    payload = bytes.fromhex("00000000ffffff7f803f01")
    refuses_without_allocating(
        lambda: DROPOUT.decode(memoryview(payload), MAX_PARAMS), Reason.TRUNCATED
    )
