"""What the simulator sees of data, training and attacks."""

from typing import Any

import numpy as np
import pytest

from fedmq.simulator.virtual.learner import Job, Learner, Trained
from fedmq.simulator.virtual.learning.attack_options import AttackOptions
from fedmq.simulator.virtual.learning.attacks import attacks
from fedmq.simulator.virtual.learning.data_options import DataOptions
from fedmq.simulator.virtual.learning.learner import NetworkLearner, learner_of
from schemas.errors import ConfigError
from schemas.params import Params
from schemas.task import Option, TrainOptions

HERE = "tests.fedmq.simulator.virtual.learning.own_data"
OWN = DataOptions(f"{HERE}:two_blobs", f"{HERE}:seen_by_nobody", hidden=(4,))
TRAIN = TrainOptions(epochs=2, learning_rate=0.2)
LARGE = 1_000_000


def digits(
    attack: AttackOptions | None = None, train: TrainOptions = TRAIN, devices: int = LARGE
) -> NetworkLearner:
    data = DataOptions(hidden=(10,))
    return learner_of(data, attack or AttackOptions(), train, devices=devices, seed=1)


def jobs(learner: Learner, count: int = 12) -> list[Job]:
    base = learner.initial()
    return [Job(70_001 * d, d % 3, base, 5.0 * d) for d in range(count)]


def same(some: Trained, other: Trained) -> bool:
    return some.delta.tobytes() == other.delta.tobytes() and (some.loss, some.steps) == (
        other.loss,
        other.steps,
    )


@pytest.mark.parametrize("kind", ["none", "alie", "gaussian", "label-flip"])
def test_a_job_comes_to_the_same_alone_and_in_company(kind: str) -> None:
    attack = AttackOptions(kind, share=0.5)  # type: ignore[arg-type]  # one of the literals
    learner = digits(attack)
    asked = jobs(learner)
    together = learner.train(asked)
    again = digits(attack)
    assert all(
        same(found, again.train([job])[0])
        for found, job in reversed(list(zip(together, asked, strict=True)))
    )


def test_two_rounds_of_one_device_differ_and_so_do_two_devices() -> None:
    learner = digits()
    base = learner.initial()
    found = learner.train([Job(7, 0, base, 0.0), Job(7, 1, base, 0.0), Job(8, 0, base, 0.0)])
    assert len({trained.delta.tobytes() for trained in found}) == 3


def test_a_fleet_learns_digits_from_few_devices() -> None:
    learner = digits()
    params: Params = learner.initial()
    before = learner.evaluate(params)
    for number in range(12):
        found = learner.train([Job(number * 20 + d, 0, params, 0.0) for d in range(20)])
        params = params + np.mean([trained.delta for trained in found], axis=0)
    after = learner.evaluate(params)
    assert before["accuracy"] < 0.3
    assert after["accuracy"] > 0.7
    assert after["loss"] < before["loss"]


@pytest.mark.parametrize(("bound", "asked", "made"), [(0, 0, 8), (3, 0, 3), (0, 5, 5), (3, 11, 11)])
def test_steps_follow_from_epochs_the_tasks_bound_or_the_job(
    bound: int, asked: int, made: int
) -> None:
    learner = digits(train=TrainOptions(epochs=2, steps=bound))  # 50 examples in batches of 16
    trained = learner.train([Job(3, 0, learner.initial(), 0.0, asked)])[0]
    assert trained.steps == made
    assert trained.num_examples == 50
    if not asked:
        assert learner.steps_of(3) == made


def test_all_who_send_a_little_send_the_same_from_one_base() -> None:
    attack = AttackOptions("alie", share=0.5, z=0.5)
    learner, honest = digits(attack), digits()
    asked = jobs(learner)
    bad = [attacks(attack, learner.devices, job.device, 1) for job in asked]
    assert 2 < sum(bad) < 10
    sent, meant = learner.train(asked), honest.train(asked)
    assert len({t.delta.tobytes() for t, lies in zip(sent, bad, strict=True) if lies}) == 1
    pairs = list(zip(sent, meant, bad, strict=True))
    assert all(same(mine, true) != lies for mine, true, lies in pairs)


@pytest.mark.parametrize("kind", ["label-flip", "gaussian"])
def test_an_attacker_sends_something_else_every_round_and_owns_up_to_the_rest(kind: str) -> None:
    attack = AttackOptions(kind, share=1.0)  # type: ignore[arg-type]  # one of the literals
    learner, honest = digits(attack), digits()
    base = learner.initial()
    asked = [Job(5, 0, base, 0.0), Job(5, 1, base, 0.0)]
    sent, meant = learner.train(asked), honest.train(asked)
    assert len({trained.delta.tobytes() for trained in (*sent, *meant)}) == 4
    assert abs(np.corrcoef(sent[0].delta, sent[1].delta)[0, 1]) < (1 if kind != "gaussian" else 0.2)
    assert [(t.loss, t.num_examples) for t in sent] == [(t.loss, t.num_examples) for t in meant]


def test_drift_changes_what_is_taught_and_what_is_asked() -> None:
    data = DataOptions(hidden=(), drift_classes=1, drift_s=100.0)
    learner = learner_of(data, AttackOptions(), TRAIN, devices=LARGE, seed=1)
    params = learner.initial()
    for number in range(6):
        found = learner.train([Job(number * 20 + d, 0, params, 200.0) for d in range(20)])
        params = params + np.mean([trained.delta for trained in found], axis=0)
    assert learner.evaluate(params, at_s=200.0)["accuracy"] > 0.6
    assert learner.evaluate(params)["accuracy"] < 0.2


def test_the_label_of_a_device_is_what_it_has_most_of() -> None:
    learner = digits()
    counts = learner.world.share(5).targets.sum(axis=0)
    assert counts[learner.label_of(5)] == counts.max()


def test_data_of_ones_own_are_learnt() -> None:
    learner = learner_of(OWN, AttackOptions(), TRAIN, devices=13, seed=1)
    params = learner.initial()
    for _ in range(8):
        found = learner.train([Job(d, 0, params, 0.0) for d in range(5)])
        params = params + np.mean([trained.delta for trained in found], axis=0)
    assert learner.evaluate(params)["accuracy"] > 0.9
    with pytest.raises(ConfigError, match=r"data\.source: examples of device 13 have classes"):
        learner.train([Job(13, 0, params, 0.0)])


def test_data_that_are_no_pair_are_refused() -> None:
    data = DataOptions(f"{HERE}:no_pair", OWN.held_out)
    learner = learner_of(data, AttackOptions(), TRAIN, devices=13, seed=1)
    with pytest.raises(ConfigError, match=r"data\.source"):
        learner.train([Job(1, 0, learner.initial(), 0.0)])


def test_bad_options_of_training_are_named() -> None:
    with pytest.raises(ConfigError, match=r"momentum") as refused:
        digits(train=TrainOptions(options={"momentum": 1.0}))
    assert refused.value.field == "task.train.options"


@pytest.mark.parametrize("options", [{"optimizer": "adam"}, {"clip": 1.0}], ids=str)
def test_what_the_built_in_network_would_leave_unheard_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="not simulated"):
        digits(train=TrainOptions(options=options))


def test_a_trainer_of_ones_own_gets_the_devices_examples_and_the_bound_on_steps() -> None:
    data = DataOptions(hidden=(), trainer=f"{HERE}:Counting")
    train = TrainOptions(steps=4, seconds=1e-9, joules=1e-9)
    learner = learner_of(data, AttackOptions(), train, devices=LARGE, seed=1)
    base = learner.initial()
    given, own = learner.train([Job(1, 0, base, 0.0, 2), Job(1, 0, base, 0.0)])
    assert np.allclose(given.delta, 2)
    assert np.allclose(own.delta, 4)
    assert own.num_examples == 50


@pytest.mark.parametrize("asked", [0, 2, 11])
def test_the_production_trainer_as_ones_own_comes_to_the_same(asked: int) -> None:
    extra: dict[str, Option] = {"momentum": 0.5, "weight_decay": 0.01, "prox": 0.1}
    train = TrainOptions(epochs=2, options=extra)
    own, built_in = (
        learner_of(
            DataOptions(hidden=(10,), trainer=trainer),
            AttackOptions(),
            train,
            devices=LARGE,
            seed=1,
        )
        for trainer in ("edge_agent.trainers:MlpTrainer", "")
    )
    asks = [Job(d, 1, own.initial(), 0.0, asked) for d in range(3)]
    for mine, theirs in zip(own.train(asks), built_in.train(asks), strict=True):
        np.testing.assert_allclose(mine.delta, theirs.delta, atol=1e-5)
        assert mine.steps == theirs.steps
        assert mine.metrics.keys() == theirs.metrics.keys()
        assert dict(mine.metrics) == pytest.approx(dict(theirs.metrics), abs=1e-4)


def test_colluders_are_taught_by_the_trainer_that_all_have() -> None:
    data = DataOptions(hidden=(), trainer=f"{HERE}:Counting")
    attack = AttackOptions("alie", share=1.0)
    learner = learner_of(data, attack, TrainOptions(steps=4), devices=LARGE, seed=1)
    sent = learner.train([Job(5, 0, learner.initial(), 0.0)])[0]
    np.testing.assert_allclose(sent.delta, 4, rtol=1e-5)  # all mean the same: no deviation


def test_a_trainer_that_diverges_sends_nothing_and_one_that_errs_is_named() -> None:
    diverging, shapeless = (
        learner_of(
            DataOptions(hidden=(), trainer=f"{HERE}:{name}"),
            AttackOptions(),
            TRAIN,
            devices=LARGE,
            seed=1,
        )
        for name in ("Diverging", "Shapeless")
    )
    job = Job(1, 0, diverging.initial(), 0.0)
    assert np.isnan(diverging.train([job])[0].delta).all()
    with pytest.raises(ConfigError, match=r"data\.trainer: unknown tensor 'w'"):
        shapeless.train([job])


def test_a_little_is_the_same_within_a_period_of_drift() -> None:
    data = DataOptions(hidden=(), drift_classes=1, drift_s=100.0)
    attack = AttackOptions("alie", share=1.0)
    learner = learner_of(data, attack, TRAIN, devices=LARGE, seed=1)
    base = learner.initial()
    jobs = [Job(d, d, base, at_s) for d, at_s in enumerate((210.0, 290.0, 310.0))]
    early, late, after = (trained.delta.tobytes() for trained in learner.train(jobs))
    assert early == late != after
    assert learner.train(jobs[1:2])[0].delta.tobytes() == early


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (DataOptions("mnist"), "data.source"),
        (DataOptions("turbofan:/nowhere.txt"), "data.source"),
        (DataOptions(f"{HERE}:nothing"), "data.source"),
        (DataOptions(f"{HERE}:two_blobs"), "data.held_out"),
        (DataOptions(OWN.source, OWN.held_out, "iid"), "data.partition"),
        (DataOptions(partition="natural"), "data.partition"),
        (DataOptions(trainer="nowhere:Nobody"), "data.trainer"),
        (DataOptions(examples=3), "data.examples"),
        (DataOptions(drift_classes=1), "data.drift_s"),
        (DataOptions(OWN.source, f"{HERE}:one_class"), "data.held_out"),
    ],
)
def test_what_cannot_be_learnt_is_refused_by_the_name_of_its_field(
    data: DataOptions, field: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        learner_of(data, AttackOptions(), TRAIN, devices=10, seed=1)
    assert refused.value.field == field
