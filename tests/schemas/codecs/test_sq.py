import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, codec_is_unbiased, generator, refuses_without_allocating

from schemas.codecs import Ask, sq, varint
from schemas.codecs.holding import STABLE
from schemas.codecs.sq import MOST, SQ, omega
from schemas.delta import Sparse, peak, to_dense
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import MAX_PARAMS

SPREAD = (
    np.exp(0.8 * generator(3).standard_normal(400)) * generator(4).choice([-1, 1], 400)
).astype(np.float32)
"""400 numbers of either sign, none far above the others."""


def _decode(payload: bytes, size: int) -> Sparse:
    delta = SQ.decode(memoryview(payload), size)
    assert isinstance(delta, Sparse)
    return delta


def _impulses(payload: bytes) -> int:
    return varint.read(memoryview(payload), 2)[0]


def _scale(payload: bytes) -> float:
    (scale,) = struct.unpack("<f", b"\0\0" + payload[:2])
    return scale


def test_the_mean_over_draws_is_the_vector_though_every_packet_is_filled():
    """And the variance is what omega says, as no coordinate is due two impulses."""
    variance = codec_is_unbiased(SQ, SPREAD, Ask(budget=24), draws=800)
    some = [_impulses(SQ.encode(SPREAD, Ask(budget=24), generator(seed))) for seed in range(50)]
    assert max(some) * np.abs(SPREAD).max() < np.abs(SPREAD).sum()
    assert variance == pytest.approx(np.mean([omega(SPREAD, k) for k in some]), rel=0.02)


def test_every_coordinate_is_hit_as_often_as_it_is_due():
    """One by one, and among 24 coordinates: what favours short codes fails here."""
    vector = SPREAD[:24] * np.float32(0.01)
    rng, draws, total, squares = generator(11), 2500, np.zeros(24), np.zeros(24)
    for _ in range(draws):
        back = to_dense(_decode(SQ.encode(vector, Ask(budget=9), rng), 24), 24)
        total += back
        squares += np.square(back, dtype=np.float64)
    mean = total / draws
    error = np.sqrt((squares / draws - mean**2) / draws)
    assert (np.abs(mean - vector) < 4 * error).all()


def test_dropping_impulses_keeps_the_mean_of_what_is_held():
    """Whatever the code's length has to do with where they lie: a martingale."""
    places = np.repeat([0, 1, 2, 70, 300, 301, 900], [4, 1, 2, 1, 1, 5, 1])
    rng, draws, share, sizes = generator(5), 1500, np.zeros(901), set()
    for _ in range(draws):
        kept = sq._thinned(places, 8 * 9, rng)
        sizes.add(kept.size)
        np.add.at(share, kept, 1 / kept.size)
    assert len(sizes) > 1, "how many are dropped depends on which ones"
    due = np.bincount(places) / places.size  # a share of k impulses varies by due / k at most
    assert (np.abs(share / draws - due) <= 4 * np.sqrt(due / min(sizes) / draws)).all()


def test_more_than_one_impulse_a_coordinate_leaves_less_than_omega_says():
    variance = codec_is_unbiased(SQ, np.ones(50, dtype=np.float32), Ask(budget=60), draws=300)
    assert variance < 0.01


@LEAN
@given(
    size=st.integers(100, 20_000),
    budget=st.integers(24, 500),
    seed=st.integers(0, 1000),
    tail=st.sampled_from([0.0, 1.0, 3.0]),
)
def test_a_packet_is_filled_but_for_less_than_one_long_gap(size, budget, seed, tail):
    rng = generator(seed)
    vector = rng.standard_normal(size) * np.exp(tail * rng.standard_normal(size))
    payload = SQ.encode(vector.astype(np.float32), Ask(budget=budget), rng)
    assert len(payload) <= budget
    assert len(payload) >= budget - 4 or _impulses(payload) == MOST * size


def test_most_packets_are_filled_to_the_last_byte():
    vector = generator().standard_normal(9_610).astype(np.float32)
    rng = generator(1)
    lengths = [len(SQ.encode(vector, Ask(budget=103), rng)) for _ in range(30)]
    assert np.mean(lengths) > 102.7


def test_without_a_budget_the_payload_grows_with_the_root_of_the_size():
    for size, due in ((100, 24), (9_610, 103), (99_530, 331)):
        vector = generator().standard_normal(size).astype(np.float32)
        assert due - 2 <= len(SQ.encode(vector, Ask(), generator())) <= due


def test_a_budget_beyond_any_use_is_left_empty():
    payload = SQ.encode(SPREAD, Ask(budget=100_000), generator())
    assert _impulses(payload) == MOST * SPREAD.size
    assert len(payload) < 4 * SPREAD.size


def test_noise_that_would_make_the_server_diverge_is_held_down():
    free = SQ.encode(SPREAD, Ask(budget=24), generator())
    noise = omega(SPREAD, _impulses(free))
    held = SQ.encode(SPREAD, Ask(budget=24, gain=4 * STABLE / noise), generator())
    assert held[2:] == free[2:], "the scale alone"
    assert _scale(held) == pytest.approx(_scale(free) / 4, rel=0.15)
    quiet = SQ.encode(SPREAD, Ask(budget=24, gain=0.7 * STABLE / noise), generator())
    assert quiet == free


def test_the_same_coordinate_is_hit_again_and_again():
    payload = SQ.encode(np.array([-0.5], dtype=np.float32), Ask(), generator())
    delta = _decode(payload, 1)
    assert delta.indices.tolist() == [0]
    assert _impulses(payload) == MOST
    assert delta.values.tolist() == [-0.5]


def test_a_vector_of_zeros_is_a_delta_of_nothing_in_three_bytes():
    payload = SQ.encode(np.zeros(40, dtype=np.float32), Ask(budget=50), generator())
    assert payload == bytes(3)
    assert not _decode(payload, 40).indices.size


def test_zeros_are_never_hit():
    vector = np.zeros(300, dtype=np.float32)
    vector[[40, 41, 200]] = [1.0, -3.0, 1e-6]
    for seed in range(20):
        delta = _decode(SQ.encode(vector, Ask(), generator(seed)), 300)
        assert set(delta.indices.tolist()) <= {40, 41, 200}
        assert (np.sign(delta.values) == np.sign(vector[delta.indices])).all()


@pytest.mark.parametrize("power", [-135, -40, 23, 120])
def test_the_scale_is_drawn_so_that_its_mean_is_exact(power):
    number = np.float32(1.2345 * 2.0**power)
    payloads = [SQ.encode(np.array([number]), Ask(budget=4), generator(s)) for s in range(150)]
    sent = [_scale(payload) * _impulses(payload) for payload in payloads]
    step = max(sent) - min(sent)
    assert len(set(sent)) == 2
    assert abs(np.mean(sent) - float(number)) < 4 * step / 2 / np.sqrt(len(sent))


def test_what_is_beyond_the_largest_scale_is_clipped_to_it():
    vector = np.full(400, 3.4e38, dtype=np.float32)
    delta = _decode(SQ.encode(vector, Ask(budget=24), generator()), 400)
    assert np.isfinite(peak(delta.values))
    assert peak(delta.values) == np.float32(3.3895313892515355e38)


# sq: scale 1.0, then k, then bits
@pytest.mark.parametrize(
    ("what", "payload", "reason"),
    [
        ("a part of the head", "803f", Reason.TRUNCATED),
        ("a k that goes on", "803f80", Reason.TRUNCATED),
        ("no bits", "803f01", Reason.TRUNCATED),
        ("more impulses than bits", "803f0506", Reason.TRUNCATED),
        ("no end of a quotient", "803f0100000000", Reason.TRUNCATED),
        ("no remainder", "803f0124", Reason.TRUNCATED),
        ("no sign", "803f0307", Reason.TRUNCATED),
        ("a negative scale", "80bf0106", Reason.BAD_NUMBER),
        ("k with a byte too many", "803f810006", Reason.MALFORMED),
        ("a scale and no impulse", "803f00", Reason.MALFORMED),
        ("nothing, and a byte", "00000000", Reason.OVERSIZED),
        ("a byte after the end", "803f010600", Reason.OVERSIZED),
        ("a bit after the end", "803f0105", Reason.MALFORMED),
        ("an index out of range", "803f01000100", Reason.BAD_INDEX),
    ],
    ids=lambda x: x if isinstance(x, str) and " " in x else "",
)
def test_refused_is(what, payload, reason):
    with pytest.raises(WireError) as caught:
        _decode(bytes.fromhex(payload), 8)
    assert caught.value.reason is reason


def test_the_last_coordinate_is_allowed():
    assert _decode(bytes.fromhex("803f010010"), 8).indices.tolist() == [6]
    assert _decode(bytes.fromhex("803f010008"), 8).indices.tolist() == [7]


@pytest.mark.parametrize("scale", ["807f", "c07f"], ids=["infinite", "not a number"])
def test_a_scale_that_is_not_finite_passes_the_codec_and_is_seen_by_peak(scale):
    """No warning either: a device must not be able to write into the server's log."""
    for body in ("0106", "0207", "020780"):
        try:
            delta = _decode(bytes.fromhex(scale + body), 8)
        except WireError:
            continue
        assert not np.isfinite(peak(delta.values))


def test_a_large_model_costs_what_the_payload_costs():
    vector = generator().standard_normal(100_000).astype(np.float32)
    payload = SQ.encode(vector, Ask(), generator())
    tracemalloc.start()
    _decode(payload, MAX_PARAMS)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert highest < 200 * len(payload)


def test_a_long_payload_of_more_hits_than_are_of_use_costs_its_bits_and_no_more():
    size, hits = 1_000, 1 << 20
    head = b"\x00\x3f" + varint.write(hits)
    payload = memoryview(head + b"\x07" + b"\xff" * (hits // 8 + 2))
    refuses_without_allocating(lambda: SQ.decode(payload, size), Reason.BAD_INDEX, 9 * len(payload))


@pytest.mark.parametrize("count", [1 << 27, (1 << 35) - 1])
def test_impulses_that_the_bytes_do_not_have_are_refused_without_allocating(count):
    payload = b"\x80\x3f" + varint.write(count) + b"\xff" * 50
    refuses_without_allocating(lambda: _decode(payload, MAX_PARAMS), Reason.TRUNCATED)
