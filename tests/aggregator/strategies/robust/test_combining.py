"""Every rule: tables by hand, the papers' formulas in plain numpy, and laws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from laws import LEAN, generator

from aggregator.exact import SPAN
from aggregator.strategies.robust import clip_factor, combine
from schemas.errors import InvariantError
from schemas.strategy import RobustOptions

RULES = (
    "mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "geometric-median",
    "centered-clipping",
)
ALL = [
    RobustOptions(rule=rule, clip=clip, mix=mix, clip_norm=norm, rounds=4)
    for rule in RULES
    for clip, norm in (("none", 0.0), ("median", 0.0), ("fixed", 1.5))
    for mix in ("none", "nearest")
]
NUMBERS = st.floats(-100, 100, width=32).map(lambda x: round(x, 3))
TABLES = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 6)), elements=NUMBERS)


def rows_of(*table: list[float]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.float32) for row in table]


def combined(table: np.ndarray, byzantine: int, **options) -> np.ndarray:
    return combine(list(table), RobustOptions(**options), byzantine)


# -- tables by hand ----------------------------------------------------------------------------

LINE = rows_of([0, 0], [1, 0], [2, 0], [3, 8], [100, -50])


@pytest.mark.parametrize(
    ("rule", "answer"),
    [
        ("mean", [21.2, -8.4]),
        ("median", [2, 0]),
        ("trimmed-mean", [2, 0]),
        ("krum", [1, 0]),  # K - f - 2 = 2 neighbours: scores 5, 2, 5, ...
        ("multi-krum", [1.5, 2]),  # all but the last
    ],
)
def test_five_rows_by_hand(rule, answer):
    found = combine(LINE, RobustOptions(rule=rule), 1)
    assert found.tolist() == np.array(answer, dtype=np.float32).tolist()
    assert found.dtype == np.float32


def test_a_median_of_an_even_number_lies_between_the_two_in_the_middle():
    assert combine(rows_of([1], [9], [2], [4]), RobustOptions(rule="median"), 1).tolist() == [3]


def test_krum_takes_the_first_of_equals():
    rows = rows_of([0, 1], [0, -1], [1, 0], [-1, 0])
    assert combine(rows, RobustOptions(rule="krum"), 1).tolist() == [0, 1]


def test_clipping_shortens_to_the_median_length_and_leaves_the_rest():
    rows = rows_of([3, 4], [1, 0], [0, -30])
    found = combine(rows, RobustOptions(clip="median"), 1)
    assert found == pytest.approx(np.array([4 / 3, -1 / 3]))
    fixed = combine(rows, RobustOptions(clip="fixed", clip_norm=10), 1)
    assert fixed == pytest.approx(np.array([4 / 3, -2]))


def test_mixing_takes_the_mean_of_the_nearest_and_the_first_of_equally_near_ones():
    rows = rows_of([0], [2], [4], [90])
    found = [combine(rows, RobustOptions(mix="nearest", rule="krum"), 2).tolist()]
    # K - f = 2: 0 with 2; 2 with 0 (as near as 4, but first); 4 with 2; 90 with 4
    assert found == [[1.0]]
    assert combine(rows, RobustOptions(mix="nearest"), 2).tolist() == [(1 + 1 + 3 + 47) / 4]


def test_centered_clipping_walks_a_radius_a_step_from_its_centre():
    rows, centre = rows_of([10, 0]), np.zeros(2, np.float32)
    options = RobustOptions(rule="centered-clipping", clip_norm=2, rounds=3)
    assert combine(rows, options, 1).tolist() == [6, 0]
    assert combine(rows, options, 1, np.array([9, 0], np.float32)).tolist() == [10, 0]
    assert combine(rows, options, 1, centre).tolist() == [6, 0]
    assert not centre.any()


def test_centered_clipping_forgets_its_centre_when_all_send_nothing():
    options = RobustOptions(rule="centered-clipping")
    rows, centre = rows_of([0, 0], [0, 0], [0, 0]), np.array([5, 5], np.float32)
    assert combine(rows, options, 1, centre).tolist() == [0, 0]


def test_a_geometric_median_in_a_line_is_the_one_in_the_middle():
    rows = rows_of([0, 0], [1, 1], [50, 50])
    found = combine(rows, RobustOptions(rule="geometric-median", rounds=20), 1)
    assert found == pytest.approx(np.array([1, 1]), abs=1e-3)


def test_of_no_rows_nothing_can_be_made():
    with pytest.raises(InvariantError):
        combine([], RobustOptions(), 1)


# -- the papers' formulas ----------------------------------------------------------------------


def plain(table: np.ndarray, options: RobustOptions, f: int) -> np.ndarray:
    """The formulas in float64, with whatever numpy offers; K >= 2 f + 3."""
    rows, count = table.astype(np.float64), len(table)
    if options.clip != "none":
        lengths = np.linalg.norm(rows, axis=1)
        radius = np.median(lengths) if options.clip == "median" else options.clip_norm
        rows = rows * np.minimum(1, radius / lengths)[:, None]
    if options.mix == "nearest":
        apart = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        rows = np.array([rows[np.argsort(line)[: count - f]].mean(axis=0) for line in apart])
    match options.rule:
        case "mean":
            return rows.mean(axis=0)
        case "median":
            return np.median(rows, axis=0)
        case "trimmed-mean":
            return np.sort(rows, axis=0)[f : count - f].mean(axis=0)
        case "krum" | "multi-krum":
            apart = np.square(rows[:, None] - rows[None]).sum(axis=2)
            scores = np.sort(apart, axis=1)[:, 1 : count - f - 1].sum(axis=1)
            best = 1 if options.rule == "krum" else count - f
            return rows[np.argsort(scores, kind="stable")[:best]].mean(axis=0)
        case "geometric-median":
            v = np.median(rows, axis=0)
            for _ in range(options.rounds):
                apart = np.linalg.norm(rows - v, axis=1)
                weights = 1 / np.maximum(max(1e-6 * np.median(apart), 1e-30), apart)
                v = (weights[:, None] * rows).sum(axis=0) / weights.sum()
            return v
    v = np.zeros(rows.shape[1])
    for _ in range(options.rounds):
        apart = np.linalg.norm(rows - v, axis=1)
        tau = options.clip_norm or np.median(apart)
        v = v + ((rows - v) * np.minimum(1, tau / apart)[:, None]).mean(axis=0)
    return v


@pytest.mark.parametrize("options", ALL, ids=lambda o: f"{o.rule}-{o.clip}-{o.mix}")
def test_every_rule_is_its_formula_across_the_borders_of_blocks(options):
    table = generator(5).standard_normal((9, SPAN + 40)).astype(np.float32)
    table[:, 100:] *= np.float32(0.01)  # few coordinates are what matters
    table[2] *= 7
    untouched = table.copy()
    found = combine(list(table), options, 2)
    assert np.allclose(found, plain(table, options, 2), rtol=2e-4, atol=2e-6)
    assert table.tobytes() == untouched.tobytes()


# -- laws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ALL, ids=lambda o: f"{o.rule}-{o.clip}-{o.mix}")
def test_equal_rows_and_rows_of_nothing_give_that_row_however_few(options):
    row = np.array([0.1, -1.2, 0.0, 0.7], dtype=np.float32)  # 1.39... long
    for count in (1, 2, 3, 8):
        assert combine([row] * count, options, 2).tolist() == row.tolist()
        assert not combine([np.zeros_like(row)] * count, options, 2).any()


@LEAN
@given(table=TABLES, f=st.integers(0, 3), data=st.data())
def test_the_order_of_rows_changes_no_more_than_rounding(table, f, data):
    order = data.draw(st.permutations(range(len(table))))
    for rule in ("mean", "median", "trimmed-mean", "geometric-median", "centered-clipping"):
        one = combined(table, f, rule=rule, clip="median", rounds=3)
        other = combined(table[order], f, rule=rule, clip="median", rounds=3)
        assert np.allclose(one, other, rtol=1e-4, atol=1e-4)


@LEAN
@given(table=TABLES, size=st.floats(-(2.0**99), 2.0**99, width=32), data=st.data())
def test_f_outliers_of_any_size_leave_a_trimmed_mean_within_the_honest_range(table, size, data):
    f = data.draw(st.integers(0, (len(table) - 1) // 2))
    honest = table.copy()
    liars = np.full((f, table.shape[1]), size, dtype=np.float32)
    rows = np.concatenate([honest[f:], liars])
    low, high = honest[f:].min(axis=0), honest[f:].max(axis=0)
    for rule in ("trimmed-mean", "median"):
        found = combined(rows, f, rule=rule)
        assert ((low <= found) & (found <= high)).all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "mean"])
@pytest.mark.parametrize("size", [1e3, 1e30])
def test_two_liars_of_nine_do_not_carry_a_rule_away(rule, size):
    rng = generator(11)
    rows = [(1 + 0.1 * rng.standard_normal(50)).astype(np.float32) for _ in range(7)]
    liars = [np.full(50, -size, dtype=np.float32)] * 2
    found = combine([*liars, *rows], RobustOptions(rule=rule, rounds=16), 2)
    assert np.abs(found - 1).max() < 0.5


@LEAN
@given(length=st.floats(0, 1e30), radius=st.floats(0, 1e30))
def test_clipping_never_lengthens(length, radius):
    assert 0 <= clip_factor(length, radius) <= 1
    assert length * clip_factor(length, radius) <= radius * (1 + 1e-15)


def test_a_buffer_that_is_not_full_is_combined_by_what_is_there():
    rows = rows_of([1], [2], [60])
    found = {rule: combine(rows, RobustOptions(rule=rule), 4).tolist()[0] for rule in RULES[:5]}
    assert found == {"mean": 21, "median": 2, "trimmed-mean": 2, "krum": 1, "multi-krum": 1}


def test_the_sign_of_a_zero_does_not_depend_on_where_it_was_sorted_to():
    rows = rows_of([-0.0], [-0.0], [-0.0])
    for rule in RULES:
        assert not np.signbit(combine(rows, RobustOptions(rule=rule), 1)).any()
