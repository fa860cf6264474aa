import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_bundles
import pytest

from edge_agent.onnx.trainer import OnnxTrainer
from edge_agent.sources import Samples
from edge_agent.trainer import Evaluator, Stopped, TrainResult
from edge_agent.trainers import SoftmaxTrainer
from schemas.params import ParamSpec, TensorSpec, unflatten
from schemas.task import PersonalOptions, TrainOptions

pytest.importorskip("onnxruntime", reason="needs the extra [onnx-runtime]")

SOFTMAX = onnx_bundles.softmax_bundle()
LINE = onnx_bundles.line_bundle()
OPTIONS = TrainOptions(epochs=3, batch_size=4, learning_rate=0.1, options={"momentum": 0.5})


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def classes(count: int = 30) -> Samples:
    rng = generator(1)
    y = rng.integers(0, 3, count)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    x[:, :3] += 3 * np.eye(3, dtype=np.float32)[y]
    return Samples(x, y.astype(np.int64))


def numbers(count: int = 40) -> Samples:
    x = generator(2).normal(5, 1, size=(count, 3)).astype(np.float32)
    return Samples(x, (x @ np.array([[1], [2], [3]], np.float32)))


def start(bundle: Any = SOFTMAX) -> dict[str, np.ndarray]:
    spec = bundle.manifest.params
    flat = generator(3).normal(size=spec.size).astype(np.float32)
    flat.flags.writeable = False
    return unflatten(spec, flat)


def test_it_trains_as_the_trainer_that_is_written_by_hand() -> None:
    samples = classes()
    mine = OnnxTrainer(SOFTMAX, samples).train(start(), OPTIONS, generator())
    theirs = SoftmaxTrainer(samples.x, samples.y).train(start(), OPTIONS, generator())
    for name in ("W", "b"):
        assert mine.tensors[name] == pytest.approx(theirs.tensors[name], abs=1e-5)
    assert mine.num_examples == 30
    assert mine.metrics == pytest.approx(dict(theirs.metrics), abs=1e-5)
    assert mine.metrics["loss_after"] < mine.metrics["loss_before"]


def test_what_a_step_has_measured_goes_into_the_buffers_and_nothing_else_does() -> None:
    asked = TrainOptions(
        epochs=1, batch_size=40, learning_rate=1e-3, options={"weight_decay": 0.5, "prox": 0.5}
    )
    samples, before = numbers(), start(LINE)
    result = OnnxTrainer(LINE, samples).train(before, asked, generator())
    seen = 0.9 * before["seen"] + 0.1 * samples.x.mean(axis=0)
    assert result.tensors["seen"] == pytest.approx(seen, rel=1e-5)


def test_what_is_frozen_stays_whatever_the_step_says_of_it() -> None:
    params = ParamSpec((TensorSpec("W", (4, 3)), TensorSpec("b", (3,), "frozen")))
    manifest = msgspec.structs.replace(SOFTMAX.manifest, params=params)
    trainer = OnnxTrainer(replace(SOFTMAX, manifest=manifest), classes())
    asked = TrainOptions(options={"optimizer": "adam", "weight_decay": 0.1})
    result = trainer.train(start(), asked, generator())
    assert result.tensors["b"].tolist() == start()["b"].tolist()
    assert result.tensors["W"].tolist() != start()["W"].tolist()


def test_a_regression_tells_its_error_in_the_labels_unit() -> None:
    asked = TrainOptions(60, 8, 0.5, options={"optimizer": "adam", "clip": 1e3})
    result = OnnxTrainer(LINE, numbers()).train(start(LINE), asked, generator())
    assert result.metrics["rmse"] ** 2 == pytest.approx(result.metrics["loss_after"])
    assert result.metrics["rmse"] < 2


def test_the_global_model_is_measured_on_what_is_held_out() -> None:
    samples = classes()
    trainer = OnnxTrainer(SOFTMAX, samples, holdout=0.2)
    assert isinstance(trainer, Evaluator)
    found = trainer.evaluate(start())
    assert found is not None
    assert found.num_examples == 6
    held = slice(4, None, 5)
    scores = samples.x[held] @ start()["W"] + start()["b"]
    assert found.metrics["accuracy"] == np.mean(scores.argmax(axis=1) == samples.y[held])
    assert trainer.train(start(), OPTIONS, generator()).num_examples == 24
    assert OnnxTrainer(SOFTMAX, samples).evaluate(start()) is None


def test_new_samples_are_those_since_the_last_training() -> None:
    trainer = OnnxTrainer(SOFTMAX, classes())
    assert trainer.new_samples() == 30
    trainer.train(start(), OPTIONS, generator())
    assert trainer.new_samples() == 0


def test_a_bound_on_seconds_ends_a_round_and_tells_its_steps() -> None:
    ticks = iter(range(1000))
    trainer = OnnxTrainer(SOFTMAX, classes(), clock=lambda: next(ticks))
    asked = TrainOptions(epochs=50, batch_size=4, seconds=7)
    assert 1 <= trainer.train(start(), asked, generator()).metrics["steps"] <= 8


def test_divergence_is_a_sentence() -> None:
    asked = TrainOptions(epochs=50, learning_rate=1e4)
    with pytest.raises(ValueError, match=r"lower train\.learning_rate"):
        OnnxTrainer(LINE, numbers()).train(start(LINE), asked, generator())


def test_tensors_of_another_model_are_named() -> None:
    with pytest.raises(ValueError, match=r"not the bundle's.*'W'"):
        OnnxTrainer(SOFTMAX, classes()).train({"b": np.zeros(3)}, OPTIONS, generator())


def test_a_personal_model_is_refused_rather_than_forgotten() -> None:
    asked = TrainOptions(personal=PersonalOptions("finetune"))
    with pytest.raises(ValueError, match=r"train\.personal"):
        OnnxTrainer(SOFTMAX, classes()).train(start(), asked, generator())


# -- power cuts --------------------------------------------------------------------------------


class PowerCutError(Exception):
    pass


class Clock:
    """A second passes whenever somebody looks; after so many the power is cut."""

    def __init__(self, cut: int = 1 << 30) -> None:
        self.now, self._cut = 0, cut

    def __call__(self) -> float:
        self.now += 1
        if self.now > self._cut:
            raise PowerCutError
        return float(self.now)


def keeping(keep: Path, clock: Clock, samples: Samples | None = None) -> OnnxTrainer:
    return OnnxTrainer(SOFTMAX, samples or classes(), clock=clock, keep=keep, checkpoint_s=3)


def same(one: TrainResult, other: TrainResult) -> bool:
    return all(one.tensors[n].tobytes() == other.tensors[n].tobytes() for n in one.tensors)


@pytest.mark.parametrize("cut", [5, 6, 11, 17, 23])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_round_that_power_loss_has_cut_ends_with_the_same_bits(
    tmp_path: Path, cut: int, optimizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedmq.agent")
    asked = TrainOptions(epochs=3, batch_size=4, options={"optimizer": optimizer})
    rng = generator()
    whole = keeping(tmp_path / "other", Clock()).train(start(), asked, rng)
    keep = tmp_path / "round"
    with pytest.raises(PowerCutError):
        keeping(keep, Clock(cut)).train(start(), asked, generator())
    assert keep.exists()
    resumed_rng = generator(99)
    resumed = keeping(keep, Clock()).train(start(), asked, resumed_rng)
    assert "round_resumed" in caplog.text
    assert same(whole, resumed)
    assert rng.random() == resumed_rng.random()
    assert not keep.exists()


# -- being told to stop ----------------------------------------------------------------------------


class Telling(Clock):
    """Says something when somebody has looked so often."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at
        self.say: Callable[[], None] = lambda: None

    def __call__(self) -> float:
        if self.now == self._at:
            self.say()
        return super().__call__()


@pytest.mark.parametrize("at", [2, 10, 24, 25])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_round_that_is_told_to_stop_goes_on_from_its_newest_step_with_the_same_bits(
    tmp_path: Path, at: int, optimizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fedmq.agent")
    asked = TrainOptions(epochs=3, batch_size=4, options={"optimizer": optimizer})
    clock, rng = Telling(at), generator()
    trainer = OnnxTrainer(SOFTMAX, classes(), clock=clock, keep=tmp_path / "a", checkpoint_s=1e9)
    clock.say = trainer.stop
    with pytest.raises(Stopped):
        trainer.train(start(), asked, generator())
    clock.say = lambda: None
    resumed = trainer.train(start(), asked, generator(99))  # what was said before is not meant
    whole = OnnxTrainer(SOFTMAX, classes()).train(start(), asked, rng)
    assert same(whole, resumed)
    assert f"round_resumed steps={at - 1}" in caplog.text
    assert not (tmp_path / "a").exists()


def test_a_measurement_that_is_told_to_stop_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = OnnxTrainer(SOFTMAX, classes(1000), holdout=0.5)
    real, built = trainer._session, []

    def session(model: bytes, what: str) -> Any:
        built.append(what)
        if len(built) == 1:
            trainer.stop()
        return real(model, what)

    monkeypatch.setattr(trainer, "_session", session)
    with pytest.raises(Stopped):
        trainer.evaluate(start())
    assert trainer.evaluate(start()) is not None
    trainer.stop()
    assert trainer.train(start(), OPTIONS, generator()).num_examples == 500


# -- what is on the disk ---------------------------------------------------------------------------


def cut_off(keep: Path) -> None:
    with pytest.raises(PowerCutError):
        keeping(keep, Clock(12)).train(start(), OPTIONS, generator())
    assert keep.exists()


@pytest.mark.parametrize("what", ["another base", "other samples", "other options"])
def test_a_round_of_something_else_is_not_gone_on_with(tmp_path: Path, what: str) -> None:
    keep = tmp_path / "round"
    cut_off(keep)
    base, samples, asked = start(), classes(), OPTIONS
    if what == "another base":
        base = {name: array + 1 for name, array in base.items()}
    elif what == "other samples":
        samples = Samples(samples.x + 1, samples.y)
    else:
        asked = TrainOptions(epochs=3, batch_size=5)
    found = keeping(keep, Clock(), samples).train(base, asked, generator())
    fresh = OnnxTrainer(SOFTMAX, samples).train(base, asked, generator())
    assert same(found, fresh)


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=str)
def test_a_damaged_file_is_not_heeded(tmp_path: Path, damage: bytes | None) -> None:
    keep = tmp_path / "round"
    cut_off(keep)
    raw = keep.read_bytes()
    keep.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]) if damage is None else damage)
    found = keeping(keep, Clock()).train(start(), OPTIONS, generator())
    assert same(found, OnnxTrainer(SOFTMAX, classes()).train(start(), OPTIONS, generator()))


def test_the_seconds_that_were_spent_before_the_cut_count(tmp_path: Path) -> None:
    keep = tmp_path / "round"
    asked = TrainOptions(epochs=100, batch_size=4, seconds=20)
    with pytest.raises(PowerCutError):
        keeping(keep, Clock(18)).train(start(), asked, generator())
    clock = Clock()
    keeping(keep, clock).train(start(), asked, generator())
    assert clock.now < 15


def test_a_full_disk_costs_the_checkpoint_and_not_the_round(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    keep = tmp_path / "state" / "round"
    found = keeping(keep, Clock()).train(start(), OPTIONS, generator())
    assert same(found, OnnxTrainer(SOFTMAX, classes()).train(start(), OPTIONS, generator()))
    assert any("checkpoint_failed" in line for line in caplog.messages)


def test_no_checkpoint_is_written_where_none_is_asked_for(tmp_path: Path) -> None:
    keep = tmp_path / "round"
    trainer = OnnxTrainer(SOFTMAX, classes(), clock=Clock(30), keep=keep, checkpoint_s=0)
    asked = TrainOptions(epochs=50, seconds=1e9)
    with pytest.raises(PowerCutError):
        trainer.train(start(), asked, generator())
    assert not keep.exists()
