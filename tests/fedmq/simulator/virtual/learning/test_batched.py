"""Training as a stack is the production trainer's training, and nobody's business but one's own."""

import numpy as np
import pytest

from edge_agent.trainers.examples import Examples
from edge_agent.trainers.layers import numbered_names
from edge_agent.trainers.local_training import train_network
from edge_agent.trainers.sgd import Descent, descent_of
from fedmq.simulator.virtual.learning.batched import Lesson, order_of, train_stack
from fedmq.simulator.virtual.learning.share import Share, one_hot
from schemas.initial import glorot, mlp_shapes
from schemas.params import Params, ParamSpec, TensorSpec, flatten, unflatten
from schemas.task import TrainOptions

CLASSES = 4


def chance(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(list(seed)))


def spec_for(hidden: tuple[int, ...], outputs: int = CLASSES) -> ParamSpec:
    shapes = mlp_shapes(6, hidden, outputs)
    return ParamSpec(tuple(TensorSpec(name, shape) for name, shape in shapes.items()))


def labelled(count: int, seed: int) -> tuple[Examples, Share]:
    rng = chance(seed)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    y = rng.integers(CLASSES, size=count)
    return Examples(x, y), one_hot(x, y, CLASSES)


@pytest.mark.parametrize("hidden", [(), (5,), (7, 5)])
@pytest.mark.parametrize(
    "extra", [{}, {"momentum": 0.8, "weight_decay": 0.02}, {"prox": 0.5, "momentum": 0.5}]
)
def test_a_stack_trains_as_the_production_trainer_does(
    hidden: tuple[int, ...], extra: dict[str, float]
) -> None:
    spec = spec_for(hidden)
    options = TrainOptions(epochs=3, batch_size=8, learning_rate=0.1, options=dict(extra))
    how = descent_of(options)
    lessons, expected = [], []
    for seed, count in enumerate((21, 3, 16)):
        examples, share = labelled(count, seed)
        base = glorot(spec, chance(9, seed))
        names = numbered_names(len(hidden) + 1)
        result = train_network(names, examples, unflatten(spec, base), options, chance(5, seed))
        expected.append(flatten(spec, result.tensors))
        lessons.append(Lesson(base, share, order_of(count, how, chance(5, seed))))
    np.testing.assert_allclose(train_stack(spec, lessons, how), expected, atol=1e-5)


def many(spec: ParamSpec, how: Descent, outputs: int) -> list[Lesson]:
    lessons = []
    for seed in range(40):
        count = 2 + 7 * (seed % 6)
        _, share = labelled(count, seed)
        if outputs == 1:
            share = Share(share.features, share.features[:, :1] / np.float32(4))
        base: Params = glorot(spec, chance(9, seed))
        lessons.append(Lesson(base, share, order_of(count, how, chance(5, seed))))
    return lessons


@pytest.mark.parametrize("outputs", [CLASSES, 1])
def test_who_is_trained_beside_a_job_does_not_change_one_bit_of_it(outputs: int) -> None:
    spec, how = spec_for((33, 9), outputs), Descent(2, 16, 0.1, 0.9, 0.01, 0.1)
    lessons = many(spec, how, outputs)
    together = train_stack(spec, lessons, how)
    backwards = train_stack(spec, lessons[::-1], how)[::-1]
    alone = np.concatenate([train_stack(spec, [lesson], how) for lesson in lessons])
    assert together.tobytes() == alone.tobytes() == backwards.tobytes()


def test_a_job_that_diverges_spoils_no_other() -> None:
    spec, how = spec_for((5,)), Descent(2, 8, 0.1)
    lessons = many(spec, how, CLASSES)[:6]
    healthy = train_stack(spec, lessons[1:], how)
    wild = Lesson(np.full(spec.size, np.inf, np.float32), lessons[0].share, lessons[0].order)
    found = train_stack(spec, [wild, *lessons[1:]], how)
    assert not np.isfinite(found[0]).all()
    assert found[1:].tobytes() == healthy.tobytes()


def test_a_short_batch_is_filled_up_with_ones_own_examples() -> None:
    spec, how = spec_for(()), Descent(1, 8, 0.1)
    _, share = labelled(3, 1)
    huge = Share(
        np.full((8, 6), 3e38, np.float32), one_hot(share.features, np.zeros(8, int), 4).targets
    )
    base = np.full(spec.size, 2, np.float32)
    mine = Lesson(base, share, order_of(3, how, chance(1)))
    mate = Lesson(base, huge, order_of(8, how, chance(2)))
    together = train_stack(spec, [mate, mine], how)  # an answer to the mate's overflows
    assert together[1].tobytes() == train_stack(spec, [mine], how)[0].tobytes()
    assert np.isfinite(together[1]).all()


def test_nobody_is_trained_when_nobody_asks() -> None:
    assert train_stack(spec_for(()), [], Descent()).shape == (0, 28)


def test_a_regression_finds_the_line() -> None:
    spec, how = spec_for((), 1), Descent(60, 8, 0.1)
    _, share = labelled(40, 1)
    line = np.array([0.5, -0.25, 0, 0, 1, 0], dtype=np.float32)
    share = Share(share.features, share.features @ line[:, None] + np.float32(0.125))
    found = train_stack(
        spec, [Lesson(np.zeros(7, np.float32), share, order_of(40, how, chance(1)))], how
    )
    np.testing.assert_allclose(found[0], [*line, 0.125], atol=1e-3)


def test_what_stands_still_does_not_move() -> None:
    spec, how = spec_for((5,)), Descent(1, 8, 0.1, weight_decay=0.1, momentum=0.9)
    lesson = many(spec, how, CLASSES)[3]
    still = np.arange(spec.size) < 30
    found = train_stack(spec, [lesson], how, still)[0]
    assert (found[:30] == lesson.base[:30]).all()
    assert (found[30:] != lesson.base[30:]).any()


def test_a_bound_on_steps_may_lie_before_or_beyond_the_epochs() -> None:
    how = Descent(3, 8)
    full = order_of(20, how, chance(1))
    assert len(full) == 9
    assert (order_of(20, how, chance(1), 4) == full[:4]).all()
    assert len(order_of(20, how, chance(1), 14)) == 14
    assert sorted(full[:3].ravel())[4:] == list(range(20))
