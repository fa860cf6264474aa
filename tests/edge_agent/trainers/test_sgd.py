from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.trainers.sgd import Descent, batches, descend, descent_of
from schemas.params import Params
from schemas.task import TrainOptions

ONES = np.ones(3, dtype=np.float32)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def bowl(params: Params, _rows: NDArray[np.int64]) -> Params:
    """The gradient of |w|^2 / 2."""
    return params.copy()


def flat(params: Params, _rows: NDArray[np.int64]) -> Params:
    return np.zeros_like(params)


def test_a_step_goes_down_by_learning_rate_times_gradient() -> None:
    end = descend(ONES, bowl, 4, Descent(batch_size=4, learning_rate=0.25), generator())
    assert end.tolist() == [0.75] * 3
    assert end.dtype == np.float32
    assert ONES.tolist() == [1] * 3


def test_every_epoch_takes_every_batch() -> None:
    steps: list[int] = []

    def counted(params: Params, rows: NDArray[np.int64]) -> Params:
        steps.append(rows.size)
        return np.zeros_like(params)

    descend(ONES, counted, 5, Descent(epochs=2, batch_size=2), generator())
    assert steps == [2, 2, 1, 2, 2, 1]


def test_an_epoch_has_every_row_once_in_another_order() -> None:
    rows = np.concatenate(list(batches(100, 7, generator())))
    assert sorted(rows) == list(range(100))
    assert rows.tolist() != list(range(100))


def test_fewer_examples_than_a_batch_are_one_batch() -> None:
    assert [part.size for part in batches(3, 16, generator())] == [3]


def test_momentum_keeps_going() -> None:
    how = Descent(epochs=2, batch_size=1, learning_rate=0.5, momentum=0.5)
    # v1 = 1, w1 = 0.5; v2 = 0.5 + 0.5 = 1, w2 = 0
    assert descend(ONES, bowl, 1, how, generator()).tolist() == [0] * 3


def test_weight_decay_shrinks() -> None:
    how = Descent(batch_size=1, learning_rate=0.5, weight_decay=0.5)
    assert descend(ONES, flat, 1, how, generator()).tolist() == [0.75] * 3


def test_prox_pulls_back_to_where_it_started() -> None:
    how = Descent(epochs=400, batch_size=1, learning_rate=0.1, prox=3.0)
    # at rest the bowl pulls as the prox does: w = 3 (1 - w)
    assert descend(ONES, bowl, 1, how, generator()) == pytest.approx(np.full(3, 0.75))


def test_the_task_may_ask_for_momentum_decay_and_prox() -> None:
    options = TrainOptions(
        epochs=3,
        batch_size=4,
        learning_rate=0.5,
        options={"momentum": 0.9, "weight_decay": 1e-4, "prox": 1},
    )
    assert descent_of(options) == Descent(3, 4, 0.5, 0.9, 1e-4, 1.0)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"prox": float("inf")}, "prox is inf"),
        ({"prox": float("nan")}, "prox is nan"),
        ({"prox": "1"}, "'1': a number is needed"),
        ({"prox": True}, "True: a number is needed"),
        ({"weigth_decay": 0.1}, "weigth_decay is unknown"),
    ],
)
def test_an_option_that_cannot_work_is_named(option: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        descent_of(TrainOptions(options=option))


def test_nothing_is_done_after_it_is_enough_but_one_step_always_is() -> None:
    how = Descent(epochs=3, batch_size=1, learning_rate=0.5)
    told: list[int] = []

    def after_two(steps: int) -> bool:
        told.append(steps)
        return steps >= 2

    end = descend(ONES, bowl, 2, how, generator(), enough=after_two)
    assert end.tolist() == [0.25] * 3
    assert told == [1, 2]
    assert descend(ONES, bowl, 2, how, generator(), enough=lambda _n: True).tolist() == [0.5] * 3
