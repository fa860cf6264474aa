"""What devices make of the model for themselves."""

from functools import cache

import msgspec
import numpy as np
import pytest

from edge_agent.trainers.personal import members
from fedmq.simulator.virtual.engine import Personalises
from fedmq.simulator.virtual.learner import Job
from fedmq.simulator.virtual.learning.attack_options import AttackOptions
from fedmq.simulator.virtual.learning.data_options import DataOptions
from fedmq.simulator.virtual.learning.learner import NetworkLearner, learner_of
from fedmq.simulator.virtual.learning.personal import HELD_OUT, kept
from schemas.params import Params
from schemas.task import PersonalOptions, TrainOptions

FINETUNE = PersonalOptions("finetune", epochs=5)


@cache
def learner(personal: PersonalOptions = FINETUNE, devices: int = 100_000) -> NetworkLearner:
    train = TrainOptions(epochs=1, learning_rate=0.2, personal=personal)
    data = DataOptions(partition="shards", hidden=(10,))
    return learner_of(data, AttackOptions(), train, devices=devices, seed=1)


@cache
def taught() -> Params:
    some = learner()
    params = some.initial()
    for number in range(6):
        found = some.train([Job(number * 20 + d, 0, params, 0.0) for d in range(20)])
        params = params + np.mean([trained.delta for trained in found], axis=0)
    return params


def test_who_knows_two_classes_is_better_served_by_a_model_of_its_own() -> None:
    some = learner()
    assert isinstance(some, Personalises)
    found = some.personal(taught(), at_s=0.0).figures
    assert set(found) == {"accuracy_global", "accuracy_personal", "accuracy_local"}
    assert 0.2 < found["accuracy_global"] < found["accuracy_personal"] - 0.1
    assert found["accuracy_local"] > 0.8
    assert some.personal(taught(), at_s=0.0).figures == found
    untaught = some.personal(some.initial(), at_s=0.0).figures
    assert untaught["accuracy_local"] == found["accuracy_local"] > untaught["accuracy_personal"]


def test_nobody_trains_on_what_anybody_is_measured_on() -> None:
    some, plain = learner(), learner(PersonalOptions())
    for device in (0, 77_777):
        rows = some.world.rows(device)
        mask = kept(rows)
        assert (rows[~mask] % HELD_OUT == HELD_OUT - 1).all()
        assert not set(rows[mask]) & set(rows[~mask])
        trained = some.train([Job(device, 0, some.initial(), 0.0)])[0]
        assert trained.num_examples == mask.sum() < 50
        assert some.steps_of(device) == trained.steps
        assert plain.train([Job(device, 0, some.initial(), 0.0)])[0].num_examples == 50
    assert plain.personal(some.initial(), at_s=0.0).figures == {}
    assert kept(np.full(8, HELD_OUT - 1)).all()


def test_only_the_head_moves_where_one_is_named() -> None:
    params = taught()
    silent = params * ~members(learner().spec, ("W2", "b2"))
    whole, head, body = (
        learner(msgspec.structs.replace(FINETUNE, head=names)).personal(silent, at_s=0.0).figures
        for names in ((), ("W2", "b2"), ("W1", "b1"))
    )
    assert head["accuracy_personal"] > 0.5
    assert head["accuracy_personal"] != whole["accuracy_personal"]
    assert body["accuracy_personal"] == body["accuracy_global"]  # all answers are 0: no slope


@pytest.mark.parametrize(("pull", "like"), [(0.0, "finetune"), (4.9, "global")])
def test_ditto_lies_between_the_devices_own_model_and_the_global_one(
    pull: float, like: str
) -> None:
    ditto = learner(msgspec.structs.replace(FINETUNE, method="ditto", pull=pull))
    params = taught()
    found = ditto.personal(params, at_s=0.0).figures
    tuned = learner().personal(params, at_s=0.0).figures["accuracy_personal"]
    if like == "finetune":
        assert found["accuracy_personal"] == tuned
    else:
        assert found["accuracy_global"] <= found["accuracy_personal"] < tuned


def test_rate_and_passes_are_those_of_the_personal_table() -> None:
    slow = learner(msgspec.structs.replace(FINETUNE, learning_rate=1e-9))
    params = taught()
    found = slow.personal(params, at_s=0.0).figures
    assert found["accuracy_personal"] == found["accuracy_global"]
    once = learner(msgspec.structs.replace(FINETUNE, epochs=1)).personal(params, at_s=0.0).figures
    assert (
        once["accuracy_personal"]
        < learner().personal(params, at_s=0.0).figures["accuracy_personal"]
    )


def test_a_small_fleet_is_asked_whole() -> None:
    some = learner(devices=9)
    assert some.personal(some.initial(), at_s=0.0).figures["accuracy_local"] > 0.8
