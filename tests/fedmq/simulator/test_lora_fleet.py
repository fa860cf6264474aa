"""Radios, network server, adapter and fold together, in virtual time: a small fleet learns."""

import numpy as np
import pytest

from broker.lorawan.regions import network, region
from broker.lorawan.transfers import Policy
from fedmq.simulator.lora_fleet import Air, Fleet
from fedmq.simulator.radio import Train
from schemas.codecs import CodecOptions
from schemas.params import Params, ParamSpec, TensorSpec
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import PublishOptions, TaskSpec

PARAMS = ParamSpec((TensorSpec("W", (30, 8)), TensorSpec("b", (8,))))
DEVICES = 4


def spec(**strategy) -> TaskSpec:
    options = {"buffer_size": 24, "flush_after_s": 0.0, "max_staleness": 8} | strategy
    return TaskSpec(
        PARAMS,
        strategy=StrategyOptions(staleness=StalenessOptions("constant"), **options),
        codec=CodecOptions("sq"),
        publish=PublishOptions(lattice=True, step=0.0625),
    )


def towards(goal: Params) -> Train:
    return lambda base, _rng: (base + 0.5 * (goal - base), 40)


def fleet(
    seed: int = 3, *, loss: float = 0.1, polls: bool = False, policy: Policy | None = None, sf=9
) -> tuple[Fleet, Params]:
    rng = np.random.default_rng(seed)
    goal = rng.standard_normal(PARAMS.size, dtype=np.float32)
    air = Air(region("eu868"), network("private"), region("eu868").rate(sf), loss, polls=polls)
    made = Fleet(
        spec(),
        origin=np.zeros(PARAMS.size, np.float32),
        trains=[towards(goal)] * DEVICES,
        air=air,
        policy=policy or Policy(),
        rng=rng,
    )
    return made, goal


def distance(run: Fleet, goal: Params) -> float:
    found = run.published()
    assert found is not None
    return float(np.linalg.norm(found - goal) / np.linalg.norm(goal))


@pytest.mark.parametrize("polls", [False, True])
def test_a_fleet_that_loses_a_tenth_learns_and_every_model_is_bit_identical(polls):
    run, goal = fleet(polls=polls)
    list(run.run(0.15, 3600.0))
    assert distance(run, goal) < 0.25
    state = run.fold.state
    assert state.tally.duplicates > 0
    assert not state.tally.rejected
    assert run.spent.adopted > 2 * DEVICES
    assert all(radio.wrong == 0 for radio in run.radios.values())
    assert (run.spent.polls > 0) is polls
    newest = state.lattice
    assert newest is not None
    there = [r for r in run.radios.values() if r.version == state.published.version]
    assert there
    for radio in there:
        assert radio.params.tobytes() == run.published().tobytes()


def test_the_same_seed_is_the_same_run():
    first, second = (fleet(5)[0] for _ in range(2))
    for run in (first, second):
        list(run.run(0.05, 3600.0))
    assert first.published().tobytes() == second.published().tobytes()
    assert first.spent == second.spent


def test_a_tenth_of_the_frames_less_is_a_tenth_less_and_nothing_waits():
    clear, noisy = (fleet(1, loss=loss)[0] for loss in (0.0, 0.3))
    for run in (clear, noisy):
        list(run.run(0.1, 3600.0))
    kept = noisy.fold.state.tally.folded / clear.fold.state.tally.folded
    assert kept == pytest.approx(0.7, abs=0.1)
    assert noisy.spent.frames == pytest.approx(clear.spent.frames, rel=0.02)


def test_devices_keep_their_duty_cycle_and_their_fair_use():
    run, _ = fleet(2)
    list(run.run(0.05, 3600.0))
    assert run.spent.up_air_s / DEVICES <= 0.01 * 0.05 * 86_400 * 1.02
    fair = Air(region("eu868"), network("ttn"), region("eu868").rate(7))
    assert fair.silence_s(0.3689) * 81 <= 86_400 < fair.silence_s(0.3689) * 82


def test_a_days_bound_of_downlinks_is_kept():
    run, _ = fleet(2, policy=Policy(day=3))
    list(run.run(0.05, 3600.0))
    assert 0 < run.spent.downs <= 3 * DEVICES
