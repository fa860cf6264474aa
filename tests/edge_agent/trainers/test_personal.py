"""What a device makes of the model for itself: each method's law, and that none is ever sent."""

from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.rounds import Adopted, Round, Rounds, entropy_of
from edge_agent.spool import Spool
from edge_agent.trainer import TrainResult
from edge_agent.trainers import MlpTrainer, accuracy, cross_entropy
from edge_agent.trainers.sgd import Descent, descend
from schemas.codecs import CodecOptions
from schemas.errors import ConfigError
from schemas.initial import glorot, mlp_shapes
from schemas.messages import Manifest
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.params import Params, ParamSpec, TensorSpec, flatten, spec_of, unflatten
from schemas.task import PersonalOptions, TaskSpec, TrainOptions, checked_spec
from schemas.wire import decode_update
from tests.laws import LEAN, generator

Tensors = Mapping[str, NDArray[Any]]

SHAPES = mlp_shapes(2, [6], 3)
SPEC = ParamSpec(tuple(TensorSpec(name, shape) for name, shape in SHAPES.items()))
GLOBAL = glorot(SPEC, generator(2))
HEAD = ("W2", "b2")
METHODS = ("none", "finetune", "ditto")


def blobs(count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Three clouds in the plane; this device has the classes turned round."""
    rng = generator(1)
    labels = rng.integers(0, 3, count)
    centres = np.array([[2, 0], [-1, 2], [-1, -2]])
    return centres[labels] + 0.5 * rng.standard_normal((count, 2)), (labels + 1) % 3


X, Y = blobs(40)


def asked(method: str = "none", **others: Any) -> TrainOptions:
    personal = PersonalOptions(method=method, **others)  # type: ignore[arg-type] # drawn by name
    return TrainOptions(learning_rate=0.1, personal=personal)


def tensors(params: Params = GLOBAL) -> dict[str, Params]:
    return unflatten(SPEC, params.copy())


def vector(of: Tensors | None) -> Params:
    assert of is not None
    return flatten(SPEC, of)


def distance(a: Tensors | None, b: Tensors) -> float:
    return sqrt(float(np.square(vector(a) - vector(b)).sum()))


def made(options: TrainOptions, rounds: int = 1) -> tuple[MlpTrainer, TrainResult]:
    trainer = MlpTrainer(X, Y, holdout=0.25)
    for number in range(rounds):
        result = trainer.train(tensors(), options, generator(number))
    return trainer, result


# -- nothing of it is sent -----------------------------------------------------------------------


@LEAN
@given(
    seed=st.integers(0, 1000),
    method=st.sampled_from(METHODS[1:]),
    epochs=st.integers(1, 3),
    pull=st.floats(0, 2),
)
def test_what_is_returned_is_the_same_bits_with_and_without_a_personal_model(
    seed: int, method: str, epochs: int, pull: float
) -> None:
    left = []
    for options in (asked(), asked(method, epochs=epochs, pull=pull)):
        rng = generator(seed)
        result = MlpTrainer(X, Y).train(tensors(), options, rng)
        left.append((vector(result.tensors).tobytes(), dict(result.metrics), rng.random()))
    assert left[0] == left[1]


@pytest.mark.parametrize("codec", ["float32", "qsgd", "stc"])
def test_an_update_is_the_same_payload_with_and_without_a_personal_model(
    codec: str, tmp_path: Path
) -> None:
    def payloads(method: str) -> list[bytes]:
        messages: list[bytes] = []

        def created(_boot: Boot, _seq: Seq, _replaced: Seq | None, message: bytes) -> None:
            messages.append(message)

        spool = Spool(tmp_path / method, new_boot=lambda: Boot(7))
        trainer = MlpTrainer(X, Y, holdout=0.25)
        rounds = Rounds(trainer, spool, entropy=entropy_of(3), watts=0.0, on_created=created)
        spec = checked_spec(TaskSpec(SPEC, train=asked(method), codec=CodecOptions(codec)))
        model = Adopted(_manifest(), GLOBAL)
        first = rounds.one(model, spec, Round(GLOBAL))
        rounds.one(model, spec, first)
        spool.close()
        assert (trainer.personal() is None) == (method == "none")
        return [bytes(decode_update(message).payload) for message in messages]

    assert payloads("none") == payloads("finetune") == payloads("ditto")


def _manifest() -> Manifest:
    return Manifest(
        epoch=Epoch(1),
        version=ModelVersion(0),
        model_digest=bytes(32),
        spec_digest=SPEC.digest,
        codec=0,
        blob="b",
        blob_digest=bytes(32),
        blob_bytes=4 * SPEC.size,
        chunk_bytes=4096,
    )


# -- finetune ------------------------------------------------------------------------------------


def test_finetuning_goes_on_from_the_model_that_came_in_and_fits_the_device_better() -> None:
    trainer, result = made(asked("finetune", epochs=20))
    mine = trainer.personal()
    assert mine is not None
    assert spec_of(mine) == SPEC
    x = X.astype(np.float32)
    assert cross_entropy(mine, x, Y) < 0.5 * cross_entropy(tensors(), x, Y)
    assert cross_entropy(mine, x, Y) < cross_entropy(tensors(vector(result.tensors)), x, Y)


def test_finetuning_is_sgd_from_the_global_model_whatever_the_round_before_left() -> None:
    def held(trainer: MlpTrainer) -> bytes:
        trainer.train(tensors(), asked("finetune"), generator(9))
        return vector(trainer.personal()).tobytes()

    assert held(made(asked("finetune", epochs=5), rounds=2)[0]) == held(
        MlpTrainer(X, Y, holdout=0.25)
    )


def test_a_rate_of_its_own_is_heeded_and_none_means_the_tasks() -> None:
    def moved(**options: Any) -> float:
        return distance(made(asked("finetune", **options))[0].personal(), tensors())

    assert moved(learning_rate=0.01) < 0.5 * moved()
    assert moved(learning_rate=0.1) == moved()


def test_only_the_named_head_is_finetuned() -> None:
    mine = made(asked("finetune", head=HEAD))[0].personal()
    assert mine is not None
    moved = {name for name, before in tensors().items() if (mine[name] != before).any()}
    assert moved == set(HEAD)


def test_a_head_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head names 'W9'"):
        made(asked("finetune", head=("W9",)))


def test_finetuning_that_diverges_names_its_own_rate() -> None:
    with pytest.raises(ValueError, match=r"lower train\.personal\.learning_rate"):
        made(asked("finetune", learning_rate=1e30, epochs=9))


# -- ditto ---------------------------------------------------------------------------------------


def test_ditto_keeps_its_model_between_rounds() -> None:
    once, twice = (made(asked("ditto", pull=0.1), rounds)[0].personal() for rounds in (1, 4))
    assert distance(twice, tensors()) > 1.5 * distance(once, tensors())


def test_the_stronger_the_pull_the_nearer_ditto_is_to_the_global_model() -> None:
    free, held, tight = (
        distance(made(asked("ditto", pull=pull), 5)[0].personal(), tensors())
        for pull in (0.0, 1.0, 8.0)
    )
    assert free > 1.3 * held
    assert held > 3 * tight > 0


def test_ditto_without_a_gradient_walks_to_the_global_model_by_its_equation() -> None:
    """v <- v - eta lambda (v - w): two steps with eta 0.5 and lambda 1 leave a quarter."""
    start, towards = np.full(3, 5, np.float32), np.full(3, 1, np.float32)
    how = Descent(epochs=2, batch_size=4, learning_rate=0.5, prox=1.0)

    def flat(params: Params, _rows: object) -> Params:
        return np.zeros_like(params)

    end = descend(start, flat, 4, how, generator(), towards=towards)
    assert end.tolist() == [2.0] * 3


def test_ditto_begins_anew_with_a_model_of_other_tensors() -> None:
    trainer, _ = made(asked("ditto"), 3)
    wide = {name: np.zeros(shape, np.float32) for name, shape in mlp_shapes(2, [4], 3).items()}
    trainer.train(wide, asked("ditto"), generator())
    mine = trainer.personal()
    assert mine is not None
    assert spec_of(mine) == spec_of(wide)


# -- FedRep --------------------------------------------------------------------------------------


def test_fedrep_trains_first_the_head_and_then_the_body_upon_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walked: list[tuple[Params, Params]] = []
    inner: Callable[..., Params] = descend

    def watched(start: Params, *arguments: Any, **named: Any) -> Params:
        walked.append((start.copy(), inner(start, *arguments, **named)))
        return walked[-1][1]

    monkeypatch.setattr("edge_agent.trainers.local_training.descend", watched)
    result = made(asked(head_epochs=3, head=HEAD))[1]
    (came, with_head), (began, end) = walked
    head = np.concatenate([np.full(view.size, name in HEAD) for name, view in tensors().items()])
    assert np.array_equal(came, GLOBAL)
    assert np.array_equal(with_head[~head], came[~head])
    assert (with_head[head] != came[head]).any()
    assert np.array_equal(began, with_head)
    assert np.array_equal(end[head], with_head[head])
    assert (end[~head] != began[~head]).any()
    assert np.array_equal(vector(result.tensors), end)


def test_a_device_names_the_local_tensors_to_its_trainer_only_for_fedrep(tmp_path: Path) -> None:
    kinds = tuple(
        TensorSpec(name, shape, "local" if name in HEAD else "trained")
        for name, shape in SHAPES.items()
    )
    heard: list[tuple[str, ...]] = []

    class Listener:
        def train(
            self, tensors: Tensors, options: TrainOptions, rng: np.random.Generator
        ) -> TrainResult:
            heard.append(options.personal.head)
            return MlpTrainer(X, Y).train(tensors, options, rng)

    spool = Spool(tmp_path / "spool", new_boot=lambda: Boot(7))
    rounds = Rounds(Listener(), spool, entropy=entropy_of(3), watts=0.0, on_created=lambda *_: None)
    for head_epochs in (0, 2):
        spec = checked_spec(TaskSpec(ParamSpec(kinds), train=asked(head_epochs=head_epochs)))
        rounds.one(Adopted(_manifest(), GLOBAL), spec, Round(GLOBAL))
    assert heard == [(), HEAD]
    assert set(spool.local()) == set(HEAD)
    spool.close()


@pytest.mark.parametrize(
    ("personal", "field", "says"),
    [
        (PersonalOptions("finetune", head=("W9",)), "head", "there are W1, W2, b1, b2"),
        (PersonalOptions("ditto", head=HEAD), "head", "goes unheard"),
        (PersonalOptions("ditto", head_epochs=1), "head_epochs", "a way of its own"),
        (PersonalOptions(head_epochs=1), "head_epochs", "tensors of both kinds"),
    ],
    ids=["unknown tensor", "unheard head", "two methods", "no local tensor"],
)
def test_a_table_that_could_not_be_obeyed_is_refused(
    personal: PersonalOptions, field: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        checked_spec(TaskSpec(SPEC, train=TrainOptions(personal=personal)))
    assert caught.value.field == f"train.personal.{field}"


# -- what is measured ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_personal_model_is_measured_beside_the_global_one(method: str) -> None:
    trainer, _ = made(asked(method, epochs=20), 2)
    before = MlpTrainer(X, Y, holdout=0.25).evaluate(tensors())
    found, mine = trainer.evaluate(tensors()), trainer.personal()
    assert found is not None
    assert before is not None
    shared = {name: found.metrics[name] for name in before.metrics}
    assert shared == before.metrics
    if mine is None:
        assert method == "none"
        assert found.metrics.keys() == before.metrics.keys()
        return
    held = np.arange(3, 40, 4)
    assert found.metrics["personal_accuracy"] == accuracy(mine, X[held].astype(np.float32), Y[held])
    assert found.metrics["personal_accuracy"] > found.metrics["accuracy"]
    assert found.metrics["personal_loss"] < found.metrics["loss"]


def test_what_a_user_gets_is_a_copy() -> None:
    trainer, _ = made(asked("ditto"))
    mine = trainer.personal()
    assert mine is not None
    mine["W1"][...] = 0
    assert vector(trainer.personal()).tobytes() != vector(mine).tobytes()
