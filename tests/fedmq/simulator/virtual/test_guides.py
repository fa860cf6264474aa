from fedmq.simulator.virtual.engine import run
from fedmq.simulator.virtual.fleet_file import FleetFile
from fedmq.simulator.virtual.learning.learner import learner_of
from fedmq.simulator.virtual.server import refold
from schemas.log import Guided
from schemas.task import convert


def attacked(guard: str):
    """Forty updates of twenty devices, of which half turn their deltas round."""
    tables = {
        "devices": 20,
        "seed": 3,
        "data": {"root": 100},
        "attack": {"kind": "sign-flip", "share": 0.5, "scale": 2.0},
        "participation": {"mode": "slots", "concurrency": 10},
        "stop": {"uploads": 40},
        "task": {
            "strategy": {"buffer_size": 5, "robust": {"guard": guard}},
            "codec": {"name": "float32"},
        },
    }
    fleet = convert(tables, FleetFile)
    train = fleet.task.train
    learner = learner_of(fleet.data, fleet.attack, train, devices=20, seed=fleet.seed)
    entries = []
    return run(fleet, learner, lambda _progress: None, log=entries), entries, learner


def test_a_guarded_fleet_refuses_attackers_by_the_servers_own_step_which_is_in_the_log():
    outcome, entries, learner = attacked("zeno++")
    guided = [entry for entry in entries if isinstance(entry.body, Guided)]
    assert len(guided) == outcome.version + 1
    assert outcome.outcomes["outlier"] >= 5
    assert outcome.outcomes["folded"] >= 10
    assert refold(entries, learner.initial())[-1] == (outcome.version, outcome.digest)


def test_without_a_guard_nothing_is_refused_and_the_server_trains_nothing():
    outcome, entries, _ = attacked("none")
    assert "outlier" not in outcome.outcomes
    assert not any(isinstance(entry.body, Guided) for entry in entries)
