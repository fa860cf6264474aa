from functools import reduce
from itertools import pairwise
from math import comb, log2, sqrt
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import generator, message_refuses_every_cut, message_survives, refuses_without_allocating

from schemas.errors import ConfigError, InvariantError, WireError
from schemas.lattice import (
    D_MAX,
    M_MAX,
    M_MIN,
    Q_MAX,
    Diff,
    applied,
    check_step,
    decode_diff,
    decode_keyframe,
    diff_bytes,
    diff_of,
    encode_diff,
    encode_keyframe,
    finer,
    first_exponents,
    merged,
    placed,
    sizes_of,
    walked,
)
from schemas.outcomes import Reason
from schemas.params import ParamSpec, TensorSpec

LEAN = settings(deadline=None, max_examples=40)


class Point(NamedTuple):
    q: np.ndarray
    exponents: tuple[int, ...]


class Walk(NamedTuple):
    sizes: tuple[int, ...]
    points: tuple[Point, ...]


def _walk(seed: int, sizes: tuple[int, ...], steps: int, density: float, scale: int) -> Walk:
    """A walk of some steps, at which tensors are halved now and then and some values move."""
    rng, total = generator(seed), sum(sizes)
    here = Point(np.zeros(total, dtype=np.int32), tuple(rng.integers(-2, 6, len(sizes)).tolist()))
    points = [here]
    for _ in range(steps):
        after = tuple(
            m + int(halved)
            for m, halved in zip(here.exponents, rng.random(len(sizes)) < 0.2, strict=True)
        )
        moves = rng.integers(-scale, scale + 1, total) * (rng.random(total) < density)
        q = finer(here.q, here.exponents, after, sizes) + moves.astype(np.int32)
        here = Point(q, after)
        points.append(here)
    return Walk(sizes, tuple(points))


WALKS = st.builds(
    _walk,
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5).map(tuple),
    steps=st.integers(3, 6),
    density=st.sampled_from([0.0, 0.02, 0.2, 0.9]),
    scale=st.sampled_from([1, 3, 1000]),
)


def _same(one: Diff, other: Diff) -> bool:
    arrays = zip((one.indices, one.values), (other.indices, other.values), strict=True)
    return one.shifts == other.shifts and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in arrays
    )


def _diff(a: Point, b: Point, sizes: tuple[int, ...]) -> Diff:
    return diff_of(a.q, a.exponents, b.q, b.exponents, sizes)


def _empty(shifts: tuple[int, ...] = (0,)) -> Diff:
    return Diff(shifts, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int32))


def _one(value: int, shifts: tuple[int, ...] = (0,)) -> Diff:
    return Diff(shifts, np.array([0]), np.array([value], dtype=np.int32))


def _q(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


# -- every way leads to the same bits ------------------------------------------------------------


@LEAN
@given(walk=WALKS)
def test_chain_merged_diff_direct_diff_and_keyframe_end_at_the_same_bits(walk):
    sizes, points = walk
    start, end = points[0], points[-1]
    chain = [
        decode_diff(encode_diff(_diff(a, b, sizes), sizes), sizes) for a, b in pairwise(points)
    ]
    by_chain = start
    for diff, there in zip(chain, points[1:], strict=True):
        by_chain = Point(*applied(*by_chain, diff, sizes))
        assert by_chain.q.tobytes() == there.q.tobytes()
        assert by_chain.exponents == there.exponents
    by_merged = Point(*applied(*start, reduce(lambda a, b: merged(a, b, sizes), chain), sizes))
    by_keyframe = Point(*decode_keyframe(encode_keyframe(*end, sizes), sizes))
    origin = generator(len(points)).standard_normal(sum(sizes)).astype(np.float32)
    there = placed(origin, *end, sizes).tobytes()
    for way in (by_chain, by_merged, by_keyframe):
        assert way.q.dtype == np.int32
        assert way.exponents == end.exponents
        assert placed(origin, *way, sizes).tobytes() == there


@LEAN
@given(walk=WALKS)
def test_merging_is_associative_and_gives_the_direct_diff(walk):
    sizes, points = walk
    one, two, three = (_diff(a, b, sizes) for a, b in pairwise(points[:4]))
    direct = _diff(points[0], points[3], sizes)
    left = merged(merged(one, two, sizes), three, sizes)
    right = merged(one, merged(two, three, sizes), sizes)
    assert _same(left, direct)
    assert _same(right, direct)
    assert encode_diff(left, sizes) == encode_diff(direct, sizes)


@LEAN
@given(walk=WALKS)
def test_a_diff_comes_back_as_it_was_written_and_begins_with_its_length(walk):
    diff = _diff(walk.points[0], walk.points[-1], walk.sizes)
    data = encode_diff(diff, walk.sizes)
    assert _same(decode_diff(data, walk.sizes), diff)
    assert diff_bytes(data) == diff_bytes(data[:5]) == len(data)


def test_what_a_diff_undoes_is_not_in_the_merged_one():
    there, back = _one(5), _one(-5)
    assert _same(merged(there, back, (3,)), _empty())


def test_no_vector_that_comes_in_is_changed():
    q, sizes, origin = _q(1, 2), (2,), np.ones(2, dtype=np.float32)
    placed(origin, q, (3,), sizes)
    walked(np.zeros(2, dtype=np.float32), origin, q, (3,), sizes)
    finer(q, (3,), (4,), sizes)
    applied(q, (3,), _one(1), sizes)
    applied(q, (3,), _one(1, (1,)), sizes)
    assert q.tolist() == [1, 2]
    assert origin.tolist() == [1, 1]


# -- sizes ---------------------------------------------------------------------------------------


def test_a_model_that_did_not_move_costs_two_bytes():
    sizes = (64 * 128, 128, 128 * 10, 10)
    assert len(encode_diff(_empty((0,) * 4), sizes)) == 2
    assert len(encode_keyframe(np.zeros(sum(sizes), dtype=np.int32), (5,) * 4, sizes)) == 4


@pytest.mark.parametrize("count", [24, 96, 400])
def test_a_step_of_some_weights_costs_hardly_more_than_the_bound(count):
    """Shannon's: log2 of all ways to choose so many of 9,610 weights, and a sign for each."""
    rng, sizes = generator(count), (64 * 128, 128, 128 * 10, 10)
    indices = np.sort(rng.choice(9610, count, replace=False))
    values = rng.choice([-1, 1], count).astype(np.int32)
    size = len(encode_diff(Diff((0,) * 4, indices, values), sizes))
    bound = (log2(comb(9610, count)) + count) / 8
    assert size <= 1.02 * bound + 6


def test_tensors_that_differ_are_coded_apart():
    """One of two is dense: 1,000 values of 1 bit and a half, beside 50,000 zeros that cost none."""
    rng, sizes = generator(0), (50_000, 1000)
    values = rng.choice([-1, 1], 1000).astype(np.int32)
    size = len(encode_diff(Diff((0, 0), np.arange(50_000, 51_000), values), sizes))
    assert size <= 1000 * 2 / 8 + 8


# -- steps ---------------------------------------------------------------------------------------


def test_a_step_follows_from_the_tensors_shape():
    tensors = [
        ("scale", (3,), "trained"),
        ("conv", (32, 16, 3, 3), "trained"),
        ("bias", (32,), "trained"),
        ("mean", (4, 4), "buffer"),
        ("frozen", (1000, 1000), "frozen"),
        ("after", (), "trained"),
        ("kept", (5, 5), "local"),
        ("W", (64, 128), "trained"),
    ]
    spec = ParamSpec(tuple(TensorSpec(*each) for each in tensors))
    conv, frozen, w = (0.4 * sqrt(2 / fans) for fans in (48 * 9, 2000, 192))
    exponents = first_exponents(spec, 0.0)
    assert sizes_of(spec) == (3, 32 * 16 * 9, 32, 16, 1, 64 * 128)
    assert exponents == (6, 6, 6, 10, 7, 5)
    for m, most in zip(exponents, (conv, conv, conv, None, frozen, w), strict=True):
        assert most is None or 2.0**-m <= most < 2.0 ** (1 - m)
    assert first_exponents(spec, 2.0**-4) == (4, 4, 4, 10, 4, 4)
    assert first_exponents(spec, 4.0) == (-2, -2, -2, 10, -2, -2)
    assert first_exponents(spec, 2.0**-12) == (12,) * 6


@pytest.mark.parametrize(("fans", "m"), [((6, 2), 3), ((1, 1), 2), ((2**27, 1), 15)])
def test_the_highest_power_that_is_small_enough_is_chosen(fans, m):
    """0.4 sqrt(2 / 8) is 0.2: an eighth. The smallest and nearly the largest shape there is."""
    spec = ParamSpec((TensorSpec("W", fans),))
    assert first_exponents(spec, 0.0) == (m,)


def test_a_model_of_vectors_alone_steps_by_a_32nd():
    assert first_exponents(ParamSpec((TensorSpec("v", (3,)), TensorSpec("b"))), 0.0) == (5, 5)


@pytest.mark.parametrize("step", [0.0, 1.0, 0.5, 2.0**-20, 2.0**16])
def test_a_power_of_two_is_a_step(step):
    check_step(step)


@pytest.mark.parametrize(
    ("step", "near"),
    [
        (0.04, "0.03125 or 0.0625"),
        (3.0, "2 or 4"),
        (2.0**-21, "9.53674e-07"),
        (2.0**17, "65536"),
        (60_000.0, "32768 or 65536"),
    ],
)
def test_any_other_step_is_refused_with_the_nearest_powers(step, near):
    with pytest.raises(ConfigError, match=rf"publish.step: .*; {near} ") as caught:
        check_step(step)
    assert caught.value.field == "publish.step"


@pytest.mark.parametrize("m", [M_MIN, -1, 0, 5, M_MAX])
def test_the_product_is_exact_so_that_a_fused_multiply_add_changes_nothing(m):
    q = _q(-Q_MAX, Q_MAX, Q_MAX - 1, 1, -1, 0, 8_388_609)
    zero = np.zeros(q.size, dtype=np.float32)
    assert placed(zero, q, (m,), (q.size,)).tolist() == [v * 2.0**-m for v in q.tolist()]


# -- walking -------------------------------------------------------------------------------------


@LEAN
@given(seed=st.integers(0, 1000), m=st.integers(-2, 8))
def test_a_walk_ends_less_than_a_step_from_the_model_and_stays_within_the_dead_zone(seed, m):
    rng, sizes = generator(seed), (30, 20)
    origin = rng.standard_normal(50).astype(np.float32)
    params = origin + 3 * rng.standard_normal(50).astype(np.float32)
    exponents = (m, m + 2)
    steps = np.repeat([2.0**-m, 2.0 ** -(m + 2)], sizes)
    q = walked(params, origin, np.zeros(50, dtype=np.int32), exponents, sizes)
    far = np.abs(params - placed(origin, q, exponents, sizes)) / steps
    assert (far < 1 + 1e-4).all()
    near = placed(origin, q, exponents, sizes) + (0.99 * steps * rng.uniform(-1, 1, 50))
    assert (walked(near.astype(np.float32), origin, q, exponents, sizes) == q).all()


def test_a_whole_step_away_is_a_step():
    assert walked(
        np.array([0.5, -0.5, 0.4999, -1.25], "f4"), np.zeros(4, "f4"), _q(0, 0, 0, 1), (1,), (4,)
    ).tolist() == [1, -1, 0, -2]


def test_a_model_beyond_all_bounds_is_clipped_and_a_nan_moves_nothing():
    params = np.array([np.inf, -np.inf, np.nan, 3e38, -3e38, 1.0], dtype=np.float32)
    q = _q(7, Q_MAX, 7, -Q_MAX, 7, 7)
    there = walked(params, np.full(6, -3e38, dtype=np.float32), q, (24,), (6,))
    assert there.dtype == np.int32
    assert there.tolist() == [Q_MAX, -Q_MAX, 7, Q_MAX, 7, Q_MAX]


def test_halving_keeps_the_place_up_to_the_clip():
    q, sizes, origin = _q(3, -5, 8_388_608, -7), (2, 2), np.zeros(4, dtype=np.float32)
    there = finer(q, (1, 1), (4, 2), sizes)
    assert there.tolist() == [24, -40, Q_MAX, -14]
    assert placed(origin, there, (4, 2), sizes).tolist()[:2] == [1.5, -2.5]
    assert finer(_q(1, -Q_MAX), (-16,), (24,), (2,)).tolist() == [Q_MAX, -Q_MAX]


def test_steps_are_never_widened():
    for act in (
        lambda: finer(_q(1), (2,), (1,), (1,)),
        lambda: diff_of(_q(1), (2,), _q(1), (1,), (1,)),
    ):
        with pytest.raises(InvariantError):
            act()


# -- what is refused -----------------------------------------------------------------------------


def _refusal(act) -> Reason:
    with pytest.raises(WireError) as caught:
        act()
    return caught.value.reason


def test_a_diff_that_leads_out_of_the_lattice_is_refused_and_never_wraps():
    for diff, q in [
        (_one(1), _q(Q_MAX)),
        (_one(-1), _q(-Q_MAX)),
        (_one(D_MAX), _q(Q_MAX)),
        (_one(-D_MAX), _q(-Q_MAX)),
        (_empty((1,)), _q(1 << 23)),
        (_empty((40,)), _q(-1)),
        (_one(1, (1,)), _q(Q_MAX)),
    ]:
        assert _refusal(lambda q=q, diff=diff: applied(q, (-16,), diff, (1,))) is Reason.BAD_NUMBER
    assert _refusal(lambda: applied(_q(0), (24,), _empty((1,)), (1,))) is Reason.BAD_NUMBER
    assert applied(_q(Q_MAX), (0,), _one(-2 * Q_MAX), (1,))[0].tolist() == [-Q_MAX]


def test_a_merged_diff_that_does_not_fit_is_refused_and_never_wraps():
    for first, second in [
        (_one(D_MAX), _one(1)),
        (_one(-D_MAX), _one(-1)),
        (_one(1), _empty((31,))),
        (_one(1 << 24), _empty((40,))),
        (_one(-D_MAX), _one(-D_MAX, (40,))),
        (_empty((30,)), _empty((11,))),
    ]:
        assert _refusal(lambda a=first, b=second: merged(a, b, (1,))) is Reason.BAD_NUMBER
    assert merged(_one(-1), _one(-D_MAX + (1 << 30), (30,)), (1,)).values.tolist() == [-D_MAX]


def test_a_difference_that_does_not_fit_is_refused_and_never_wraps():
    assert _refusal(lambda: diff_of(_q(1 << 20), (0,), _q(0), (11,), (1,))) is Reason.BAD_NUMBER
    assert _refusal(lambda: diff_of(_q(1), (-16,), _q(0), (24,), (1,))) is Reason.BAD_NUMBER
    assert diff_of(_q(1 << 20), (0,), _q(1), (11,), (1,)).values.tolist() == [-D_MAX]


@LEAN
@given(walk=WALKS)
def test_a_keyframe_or_a_diff_cut_at_any_byte_or_with_more_after_it_is_refused(walk):
    sizes, points = walk
    diff = encode_diff(_diff(points[0], points[-1], sizes), sizes)
    keyframe = encode_keyframe(*points[-1], sizes)
    message_refuses_every_cut(lambda data: decode_diff(data, sizes), diff)
    message_refuses_every_cut(lambda data: decode_keyframe(data, sizes), keyframe)
    for tail in (b"\0", b"\xff", bytes(8)):
        with pytest.raises(WireError):
            decode_diff(diff + tail, sizes)
        with pytest.raises(WireError):
            decode_keyframe(keyframe + tail, sizes)


@LEAN
@given(
    body=st.binary(max_size=60),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple),
)
def test_arbitrary_bytes_give_a_point_or_a_wire_error(body, sizes):
    def keyframe(data):
        q, exponents = decode_keyframe(data, sizes)
        assert q.shape == (sum(sizes),)
        assert np.abs(q).max() <= Q_MAX
        assert all(M_MIN <= m <= M_MAX for m in exponents)

    def diff(data):
        found = decode_diff(data, sizes)
        assert found.indices.dtype == np.int64
        assert found.values.dtype == np.int32
        assert (np.diff(found.indices, prepend=-1) > 0).all()
        assert found.indices.size == 0 or found.indices[-1] < sum(sizes)
        assert (found.values != 0).all()
        assert (np.abs(found.values.astype(np.int64)) <= D_MAX).all()

    message_survives(keyframe, body)
    message_survives(diff, body)
    message_survives(diff, bytes([len(body)]) + body)
    message_survives(diff_bytes, body)


@LEAN
@given(walk=WALKS, data=st.data())
def test_one_altered_bit_gives_a_point_or_a_wire_error(walk, data):
    sizes, points = walk
    for encoded, decode in (
        (encode_keyframe(*points[-1], sizes), decode_keyframe),
        (encode_diff(_diff(points[0], points[-1], sizes), sizes), decode_diff),
    ):
        bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
        altered = int.from_bytes(encoded, "big") ^ (1 << bit)
        message_survives(lambda raw, d=decode: d(raw, sizes), altered.to_bytes(len(encoded), "big"))


HUGE = (1 << 28,)


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ("011000 1 11 00000", "2^28 dense values"),
        ("011000 1 01 00000 1111111111111111111111111111", "2^28 ones"),
        ("011000 1 10 00000 1111111111111111111111111111 00000", "2^28 values"),
        ("011000 1 01 11111 0000000000000000000000000111", "8 gaps of 31 bits"),
    ],
)
def test_a_count_that_the_bits_do_not_hold_is_refused_without_allocating(claim, why):
    bits = claim.replace(" ", "")
    data = int(bits.ljust(80, "1"), 2).to_bytes(10, "big")
    refuses_without_allocating(lambda: decode_keyframe(data, HUGE), Reason.TRUNCATED)
    body = int(("0" + bits[6:]).ljust(80, "1"), 2).to_bytes(10, "big")
    diff = bytes([10]) + body
    refuses_without_allocating(lambda: decode_diff(diff, HUGE), Reason.TRUNCATED)


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        ("000000 1 01 00000 11 1111 0000", Reason.BAD_INDEX),  # four values of three
        ("000000 1 01 00000 00 0001 0", Reason.BAD_INDEX),  # three zeros before one of three
        ("000000 1 01 00000 01 01 001 00", Reason.BAD_INDEX),  # the second of two lies beyond
        ("101001 1 00", Reason.BAD_NUMBER),  # a step of 2^-25
        ("000000 1 10 00000 00 11000 1 1 " + 24 * "1" + " 0", Reason.BAD_NUMBER),  # 2^24
        ("000000 1 11 11001 1 1 1 " + 25 * "1" + 50 * "0", Reason.BAD_NUMBER),  # -2^24
        ("000000 1 00 000000 1", Reason.MALFORMED),  # something after the end
    ],
)
def test_what_lies_out_of_range_is_refused(bits, reason):
    """By hand: exponent, one run or not, head, quotients, remainders, sign of three values."""
    bits = bits.replace(" ", "")
    whole = bits.ljust(-(-len(bits) // 8) * 8, "0")
    data = int(whole, 2).to_bytes(len(whole) // 8, "big")
    assert _refusal(lambda: decode_keyframe(data, (3,))) is reason
