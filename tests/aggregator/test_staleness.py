import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from aggregator.staleness import constant, hinge, polynomial, staleness_weight
from schemas.strategy import StalenessOptions

BY_HAND = [
    (StalenessOptions("constant"), {0: 1.0, 1: 1.0, 64: 1.0, 65_535: 1.0}),
    (StalenessOptions("polynomial", a=0.5), {0: 1.0, 3: 0.5, 8: 1 / 3, 15: 0.25, 99: 0.1}),
    (StalenessOptions("polynomial", a=1.0), {0: 1.0, 1: 0.5, 3: 0.25, 9: 0.1}),
    (StalenessOptions("polynomial", a=2.0), {0: 1.0, 1: 0.25, 4: 0.04}),
    (
        StalenessOptions("hinge", a=10.0, b=4.0),
        {0: 1.0, 4: 1.0, 5: 1 / 11, 6: 1 / 21, 14: 1 / 101},
    ),
    (StalenessOptions("hinge", a=4.0, b=2.0), {0: 1.0, 2: 1.0, 3: 0.2, 4: 1 / 9}),
    (StalenessOptions("hinge", a=0.5, b=0.0), {0: 1.0, 1: 2 / 3, 2: 0.5, 6: 0.25}),
]
CASES = [(o, s, weight) for o, table in BY_HAND for s, weight in table.items()]
OPTIONS = st.builds(
    StalenessOptions,
    kind=st.sampled_from(["constant", "polynomial", "hinge"]),
    a=st.floats(1e-3, 1e3),
    b=st.floats(0, 100),
)


@pytest.mark.parametrize(
    ("options", "staleness", "weight"),
    CASES,
    ids=[f"{o.kind}-a{o.a:g}-b{o.b:g}-s{s}" for o, s, _ in CASES],
)
def test_the_weight_is_the_one_computed_by_hand(options, staleness, weight):
    assert staleness_weight(options, constant())(staleness) == pytest.approx(weight, rel=1e-15)


@LEAN
@given(options=OPTIONS)
def test_a_fresh_update_weighs_exactly_1(options):
    assert staleness_weight(options, constant())(0) == 1.0


@LEAN
@given(options=OPTIONS, staleness=st.integers(0, 65_534))
def test_the_weight_never_increases_with_staleness_and_stays_between_0_and_1(options, staleness):
    weigh = staleness_weight(options, constant())
    younger, older = weigh(staleness), weigh(staleness + 1)
    assert 0 <= older <= younger <= 1
    assert type(younger) is type(older) is float


@pytest.mark.parametrize("staleness", [0, 1, 5, 100])
def test_every_kind_takes_its_own_parameters(staleness):
    for kind, plain in (
        ("constant", constant()),
        ("polynomial", polynomial(0.7)),
        ("hinge", hinge(0.7, 3.0)),
    ):
        asked = staleness_weight(StalenessOptions(kind, a=0.7, b=3.0), constant())
        assert asked(staleness) == plain(staleness)


def test_the_default_is_the_weight_of_the_strategy_s_own_paper():
    assert staleness_weight(StalenessOptions(), polynomial(0.5))(3) == 0.5
    assert staleness_weight(StalenessOptions(), constant())(3) == 1.0


def test_a_fresh_update_does_not_weigh_one_half():
    """NVFlare's BuffModelManager: 1 / (1 + sqrt(s)) after the version was raised."""
    weigh = polynomial(0.5)
    assert weigh(0) == 1.0
    assert weigh(8) == pytest.approx(1 / 3)
