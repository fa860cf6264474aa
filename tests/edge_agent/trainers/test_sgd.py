from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.trainers.sgd import Descent, Position, batches, descend, descent_of
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
        ({"optimizer": "adamw"}, 'optimizer is \'adamw\': choose "sgd" or "adam"'),
        ({"optimizer": True}, "optimizer is 'True'"),
        ({"optimizer": "adam", "momentum": 0.9}, "momentum is unknown: with adam"),
        ({"beta1": 0.9}, "beta1 is unknown: with sgd"),
        ({"optimizer": "adam", "beta1": 1.0}, "beta1 is 1.0"),
        ({"optimizer": "adam", "beta2": -0.5}, "beta2 is -0.5"),
        ({"optimizer": "adam", "epsilon": 0}, "epsilon is 0.0: choose a number above 0"),
        ({"clip": -1.0}, "clip is -1.0"),
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


def test_adam_is_that_of_the_paper() -> None:
    how = Descent(3, 1, 0.01, optimizer="adam", beta1=0.8, beta2=0.9, epsilon=1e-3)
    w, m, v = 1.0, 0.0, 0.0
    for t in (1, 2, 3):
        m, v = 0.8 * m + 0.2 * w, 0.9 * v + 0.1 * w**2
        w -= 0.01 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)) ** 0.5 + 1e-3)
    end = descend(ONES, bowl, 1, how, generator())
    assert end == pytest.approx(np.full(3, w), rel=1e-6)
    assert end.dtype == np.float32


def test_the_task_may_ask_for_adam_and_clipping() -> None:
    asked = {"optimizer": "adam", "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-7, "clip": 1}
    found = descent_of(TrainOptions(options=asked))
    assert (found.optimizer, found.beta1, found.beta2) == ("adam", 0.8, 0.99)
    assert (found.epsilon, found.clip) == (1e-7, 1.0)


def test_a_long_gradient_is_scaled_to_the_bound_and_a_short_one_is_left_alone() -> None:
    long = Descent(batch_size=1, learning_rate=1.0, clip=3**0.5 / 2)
    assert descend(ONES, bowl, 1, long, generator()) == pytest.approx(np.full(3, 0.5))
    short = Descent(batch_size=1, learning_rate=0.5, clip=2.0)
    assert descend(ONES, bowl, 1, short, generator()).tolist() == [0.5] * 3


def test_what_stands_still_counts_for_nothing_in_the_clipped_norm() -> None:
    still = np.array([False, True, True])
    how = Descent(batch_size=1, learning_rate=0.5, clip=1.0)
    assert descend(ONES, bowl, 1, how, generator(), still=still).tolist() == [0.5, 1, 1]


def test_decay_and_pull_are_not_clipped() -> None:
    how = Descent(batch_size=1, learning_rate=0.5, weight_decay=1.0, clip=1e-6)
    assert descend(ONES, flat, 1, how, generator()).tolist() == [0.5] * 3


def noisy(params: Params, rows: NDArray[np.int64]) -> Params:
    return params * np.float32(0.1) + rows.sum(dtype=np.float32) / 7


class PowerCutError(Exception):
    pass


@pytest.mark.parametrize("cut", range(1, 13))
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_descent_that_was_cut_off_ends_with_the_same_bits(cut: int, optimizer: str) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    how = Descent(3, 3, 0.1, momentum, 0.01, 0.1, optimizer=optimizer, clip=2.0)
    whole_rng = generator(5)
    whole = descend(ONES, noisy, 10, how, whole_rng)
    kept: list[Position] = []

    def until(at: Position) -> None:
        if at.steps == cut:
            variance = None if at.variance is None else at.variance.copy()
            parts = (at.params.copy(), at.momentum.copy(), variance)
            kept.append(Position(*parts, at.steps, at.epoch, at.taken, dict(at.shuffled)))
            raise PowerCutError

    with pytest.raises(PowerCutError):
        descend(ONES, noisy, 10, how, generator(5), after=until)
    rng = generator(6)
    end = descend(ONES, noisy, 10, how, rng, begun=kept[0])
    assert end.tobytes() == whole.tobytes()
    assert rng.random() == whole_rng.random()


def test_whoever_is_told_of_a_step_may_write_what_stands_still() -> None:
    still = np.array([False, True, False])

    def measured(at: Position) -> None:
        at.params[still] = at.steps

    how = Descent(2, 1, learning_rate=0.5, weight_decay=0.1)
    end = descend(ONES, flat, 1, how, generator(), still=still, after=measured)
    assert end[1] == 2
