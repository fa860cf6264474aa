"""Laws that every built-in trainer keeps, and what each refuses of the other's tensors."""

import itertools
from collections.abc import Callable
from math import isfinite, sqrt
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.trainer import Stopped, Trainer, TrainResult
from edge_agent.trainers import MlpTrainer, SoftmaxTrainer, accuracy, cross_entropy
from edge_agent.trainers.examples import checked_examples
from edge_agent.trainers.local_training import LocalTrainer, budget, gradient_on
from edge_agent.trainers.sgd import Descent, descend
from schemas.initial import glorot, mlp_shapes
from schemas.params import ParamSpec, TensorSpec, flatten, spec_of, unflatten
from schemas.task import Option, TrainOptions

Tensors = dict[str, NDArray[np.float32]]
MakeTrainer = Callable[..., Trainer]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def blobs(count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Three clouds in the plane, one a class."""
    rng = generator(1)
    labels = rng.integers(0, 3, count)
    centres = np.array([[2, 0], [-1, 2], [-1, -2]])
    return centres[labels] + 0.5 * rng.standard_normal((count, 2)), labels


def drawn(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    spec = ParamSpec(tuple(TensorSpec(name, shape) for name, shape in shapes.items()))
    return unflatten(spec, glorot(spec, generator(2)))


SOFTMAX = drawn({"W": (2, 3), "b": (3,)})
MLP = drawn(mlp_shapes(2, [8], 3))
DEEP = drawn(mlp_shapes(2, [8, 5], 3))
X, Y = blobs(50)

both = pytest.mark.parametrize(
    ("make", "tensors"), [(SoftmaxTrainer, SOFTMAX), (MlpTrainer, MLP), (MlpTrainer, DEEP)]
)


def trained(make: MakeTrainer, tensors: Tensors, seed: int = 0, **options: Option) -> TrainResult:
    asked = TrainOptions(epochs=10, batch_size=16, learning_rate=0.1, options=options)
    return make(X, Y).train(tensors, asked, generator(seed))


def distance(result: TrainResult, tensors: Tensors) -> float:
    spec = spec_of(tensors)
    moved = flatten(spec, result.tensors) - flatten(spec, tensors)
    return sqrt(float(np.square(moved).sum()))


@both
def test_the_loss_falls(make: MakeTrainer, tensors: Tensors) -> None:
    metrics = trained(make, tensors).metrics
    assert metrics["loss_after"] < 0.5 * metrics["loss_before"]
    assert metrics["accuracy"] > 0.9


@both
def test_the_metrics_are_those_of_the_tensors(make: MakeTrainer, tensors: Tensors) -> None:
    result = trained(make, tensors)
    x = X.astype(np.float32)
    ends = {name: np.asarray(end, dtype=np.float32) for name, end in result.tensors.items()}
    assert result.metrics == {
        "loss_before": cross_entropy(tensors, x, Y),
        "loss_after": cross_entropy(ends, x, Y),
        "accuracy": accuracy(ends, x, Y),
    }
    assert all(type(value) is float and isfinite(value) for value in result.metrics.values())


@both
def test_the_tensors_come_back_named_and_shaped_as_they_came(
    make: MakeTrainer, tensors: Tensors
) -> None:
    result = trained(make, tensors)
    assert spec_of(result.tensors) == spec_of(tensors)
    assert {end.dtype for end in result.tensors.values()} == {np.dtype(np.float32)}
    assert result.num_examples == 50


@both
def test_what_comes_in_is_read_only_and_stays_as_it_was(
    make: MakeTrainer, tensors: Tensors
) -> None:
    frozen = {name: tensor.copy() for name, tensor in tensors.items()}
    for tensor in frozen.values():
        tensor.flags.writeable = False
    result = trained(make, frozen)
    assert all(np.array_equal(frozen[name], tensor) for name, tensor in tensors.items())
    assert distance(result, tensors) > 0


@both
def test_a_seeded_run_repeats_bit_for_bit(make: MakeTrainer, tensors: Tensors) -> None:
    spec = spec_of(tensors)
    first, again, other = (
        flatten(spec, trained(make, tensors, seed).tensors).tobytes() for seed in (5, 5, 6)
    )
    assert first == again
    assert first != other


@both
def test_prox_pulls_back(make: MakeTrainer, tensors: Tensors) -> None:
    free, held, tight = (
        distance(trained(make, tensors, prox=prox), tensors) for prox in (0.0, 1.0, 5.0)
    )
    assert free > held > tight > 0


@both
def test_weight_decay_keeps_the_weights_small(make: MakeTrainer, tensors: Tensors) -> None:
    nothing = {name: np.zeros_like(tensor) for name, tensor in tensors.items()}
    free = distance(trained(make, tensors), nothing)
    assert distance(trained(make, tensors, weight_decay=0.3), nothing) < free


@both
def test_momentum_goes_further(make: MakeTrainer, tensors: Tensors) -> None:
    free = distance(trained(make, tensors), tensors)
    assert distance(trained(make, tensors, momentum=0.8), tensors) > free


@both
def test_one_example_is_enough(make: MakeTrainer, tensors: Tensors) -> None:
    result = make(X[:1], Y[:1]).train(tensors, TrainOptions(batch_size=16), generator())
    assert result.num_examples == 1
    assert result.metrics["loss_after"] < result.metrics["loss_before"]


@both
def test_a_step_too_large_is_reported_and_not_sent(make: MakeTrainer, tensors: Tensors) -> None:
    wild = TrainOptions(epochs=20, learning_rate=1e6, options={"weight_decay": 10.0})
    with pytest.raises(ValueError, match=r"diverged: lower train\.learning_rate"):
        make(X, Y).train(tensors, wild, generator())


@both
def test_a_model_for_other_features_is_refused(make: MakeTrainer, tensors: Tensors) -> None:
    wide = make(np.zeros((4, 7)), np.zeros(4))
    with pytest.raises(ValueError, match="takes 2, the examples have 7"):
        wide.train(tensors, TrainOptions(), generator())


@both
def test_a_model_with_too_few_classes_is_refused(make: MakeTrainer, tensors: Tensors) -> None:
    with pytest.raises(ValueError, match="label 3 in the data, but the model has 3 classes"):
        make(X, Y + 1).train(tensors, TrainOptions(), generator())


@both
def test_an_unknown_option_is_refused(make: MakeTrainer, tensors: Tensors) -> None:
    with pytest.raises(ValueError, match="nesterov is unknown"):
        trained(make, tensors, nesterov=True)


@both
def test_examples_may_come_from_a_file(make: MakeTrainer, tensors: Tensors, tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    np.savez(file, x=X, y=Y)
    options = {"data": str(file)}  # as `fedmq-agent --option data=mine.npz` calls it
    result = make(**options).train(tensors, TrainOptions(epochs=10), generator())
    assert result.metrics == make(X, Y).train(tensors, TrainOptions(epochs=10), generator()).metrics


def test_a_trainer_without_examples_is_not_made() -> None:
    for make in (SoftmaxTrainer, MlpTrainer):
        with pytest.raises(ValueError, match="give features and labels"):
            make()


def test_each_trainer_names_the_other_for_tensors_that_are_not_its_own() -> None:
    with pytest.raises(ValueError, match="try MlpTrainer"):
        SoftmaxTrainer(X, Y).train(MLP, TrainOptions(), generator())
    with pytest.raises(ValueError, match="try SoftmaxTrainer"):
        MlpTrainer(X, Y).train(SOFTMAX, TrainOptions(), generator())


def test_a_round_ends_after_its_steps_or_its_seconds() -> None:
    seconds = iter([10.0, 10.0, 10.5, 11.0, 11.5])
    by_time = budget(TrainOptions(seconds=1.0), lambda: next(seconds))
    assert [by_time(steps) for steps in (1, 2, 3)] == [False, False, True]
    by_steps = budget(TrainOptions(steps=2), lambda: 0.0)
    assert [by_steps(steps) for steps in (1, 2, 3)] == [False, True, True]


@pytest.mark.parametrize("bound", [{"steps": 2}, {"seconds": 1.5}, {"steps": 2, "seconds": 9.0}])
def test_a_trainer_stops_when_its_budget_is_spent_and_reports_a_whole_epoch(bound) -> None:
    ticks = itertools.count()  # a second passes between any two looks
    bounded = SoftmaxTrainer(X, Y, clock=lambda: float(next(ticks)))
    options = TrainOptions(epochs=3, batch_size=1, **bound)
    result = bounded.train(SOFTMAX, options, generator())
    assert result.num_examples == len(Y)
    names, how = SoftmaxTrainer(X, Y).layers(SOFTMAX), Descent(epochs=3, batch_size=1)
    spec = spec_of(SOFTMAX)
    gradient = gradient_on(spec, names, checked_examples(X, Y))
    start = flatten(spec, SOFTMAX)
    two_steps = descend(start, gradient, len(Y), how, generator(), enough=lambda done: done == 2)
    assert np.array_equal(flatten(spec, result.tensors), two_steps)


def test_what_is_held_out_is_measured_and_never_trained_on() -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2) / 20
    y = np.array([0, 1] * 5)
    trainer = SoftmaxTrainer(x, y, holdout=0.2)
    tensors = {"W": np.zeros((2, 2), np.float32), "b": np.zeros(2, np.float32)}
    found = trainer.evaluate(tensors)
    assert found is not None
    assert found.num_examples == 2
    assert found.metrics["loss"] == pytest.approx(np.log(2))
    result = trainer.train(tensors, TrainOptions(), np.random.default_rng(0))
    assert result.num_examples == 8
    assert SoftmaxTrainer(x, y).evaluate(tensors) is None


@pytest.mark.parametrize("holdout", [-0.1, 1.0, 0.01])
def test_a_share_that_leaves_one_side_empty_is_refused(holdout) -> None:
    x, y = np.ones((10, 2), np.float32), np.zeros(10, int)
    with pytest.raises(ValueError, match="holdout"):
        SoftmaxTrainer(x, y, holdout=holdout)


@pytest.mark.parametrize("make", [SoftmaxTrainer, MlpTrainer])
def test_a_round_that_is_told_to_stop_ends_within_a_step(make: Callable[..., LocalTrainer]) -> None:
    tensors = SOFTMAX if make is SoftmaxTrainer else MLP
    looks = itertools.count()

    def clock() -> float:
        if (look := next(looks)) == 5:
            trainer.stop()
        assert look < 7, "it goes on"
        return 0.0

    trainer = make(X, Y, clock=clock)
    with pytest.raises(Stopped):
        trainer.train(tensors, TrainOptions(epochs=1000, seconds=1), generator())
    trainer.stop()
    assert trainer.train(tensors, TrainOptions(), generator()), "a later round is not meant"
