"""Figures on held-out examples: what counts as a report, and what it adds up to."""

import math

import pytest

from schemas.evaluation import Evaluation, Judgement, marked, reported, worse


def test_a_report_goes_into_an_update_and_comes_out() -> None:
    found = Evaluation(40, {"accuracy": 0.75, "loss": 1.5})
    assert reported(marked(found) | {"loss": 3.0}) == found


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"accuracy": 0.5},
        {"@accuracy": 0.5},
        {"@": 0.0, "@accuracy": 0.5},
        {"@": 0.99, "@accuracy": 0.5},
        {"@": math.inf, "@accuracy": 0.5},
        {"@": math.nan, "@accuracy": 0.5},
        {"@": -3.0, "@accuracy": 0.5},
        {"@": 10.0},
    ],
    ids=str,
)
def test_what_names_no_examples_or_no_figure_is_no_report(metrics: dict[str, float]) -> None:
    assert reported(metrics) is None


def test_means_are_weighted_by_examples() -> None:
    known = Judgement()
    for examples, accuracy in ((10, 0.5), (30, 0.9)):
        known = known.with_device(Evaluation(examples, {"accuracy": accuracy}))
    assert known.figure("accuracy", by="devices", min_devices=2) == pytest.approx(0.8)
    assert known.figure("accuracy", by="devices", min_devices=3) is None
    assert known.figure("loss", by="devices", min_devices=1) is None


def test_the_first_figures_of_the_server_count() -> None:
    known = Judgement()
    for accuracy in (0.5, 0.9):
        known = known.with_server(Evaluation(10, {"accuracy": accuracy}))
    assert known.figure("accuracy", by="server", min_devices=99) == 0.5


@pytest.mark.parametrize(
    ("value", "better", "bad"),
    [
        (0.74, "higher", True),
        (0.75, "higher", False),
        (0.90, "higher", False),
        (0.86, "lower", True),
        (0.85, "lower", False),
        (0.70, "lower", False),
    ],
)
def test_worse_is_by_more_than_the_margin(value, better, bad):
    than, margin = 0.80, 0.05
    found = worse(value, than, better=better, margin=margin + 1e-12)
    assert found is bad
