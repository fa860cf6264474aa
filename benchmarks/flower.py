"""The same fleet, model and data under Flower (PyPI `flwr`, its simulation) and here.

Flower runs FedAvg, the closest it ships: it has no asynchronous strategy. The same SGD there and
here, written twice: Flower's clients call the trainer of `edge_agent.trainers`, ours is the
simulator's, which trains many devices in one call and is tested against that. Both begin with the
same model on the same split of the digits, until the mean of three evaluations is 90 %. Bytes: of
Flower the float32 arrays of every update and model, without anything that gRPC adds; ours are whole
messages, manifests and models. Seconds are real and begin when the simulation begins: Flower's hold
the start of Ray. Flower is installed into .cache/ by this script.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np

from benchmarks.peers.environment import ROOT, environment, megabytes
from benchmarks.report import Arguments, Report, progress, run
from benchmarks.virtual.runs import fleet, outcome
from fedmq.simulator.virtual.fleet_file import FleetFile
from fedmq.simulator.virtual.learning.learner import learner_of
from schemas.params import unflatten

DEVICES: Final = 20
COHORT: Final = 5
TARGET: Final = 0.9
SEEDS: Final = 3

OURS: Final[dict[str, dict[str, Any]]] = {
    "fedmq, FedAvg, float32": {
        "strategy": {"name": "fedavg"},
        "codec": {"name": "float32"},
    },
    "fedmq, FedBuff, float32": {"codec": {"name": "float32"}},
    "fedmq, FedBuff, sq, lattice": {"codec": {"name": "sq"}, "publish": {"lattice": True}},
}


def setting(task: dict[str, Any], seed: int) -> FleetFile:
    """Our side: five at once, or five a round."""
    rounds = task.get("strategy", {}).get("name") == "fedavg"
    plain = {"buffer_size": COHORT, "flush_after_s": 0.0, "max_staleness": 1000}
    return fleet(
        {
            "devices": DEVICES,
            "seed": seed,
            "data": {"alpha": 0.3},
            "participation": {
                "mode": "rounds" if rounds else "slots",
                "concurrency": COHORT,
                "over_selection": 1.0,
                "deadline_s": 1e6,
                "lease_s": 1e6,
            },
            "stop": {"uploads": 3000, "target": {"accuracy": TARGET}},
            "measure": {"every": COHORT},
            "task": task
            | {
                "strategy": plain | task.get("strategy", {}),
                "train": {"epochs": 3, "learning_rate": 0.1},
            },
        }
    )


def measure(arguments: Arguments) -> Report:
    """Run Flower and ours, seed by seed, one after the other."""
    python = environment("flwr", "flwr[simulation]==1.42.0", "msgspec", "msgpack", "threadpoolctl")
    seeds = 1 if arguments.quick else SEEDS
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seed, arguments.seed + seeds):
        progress(f"flower: seed {seed}")
        found.setdefault("Flower, FedAvg", []).append(_flower(python, seed))
        for who, task in OURS.items():
            found.setdefault(who, []).append(_ours(setting(task, seed)))
    report = Report("flower", seeds)
    for who, mine in found.items():
        for what in mine[0]:
            report.figures[f"{who}: {what}"] = median(each[what] for each in mine)
    report.figures["Flower's environment, MB"] = megabytes(python)
    report.notes.append("to 90 % held-out accuracy, 20 devices, 5 at once; medians of the seeds")
    return report


def _ours(given: FleetFile) -> dict[str, float]:
    began = perf_counter()
    found = outcome(given)
    last = found.reached or found.samples[-1]
    return {
        "uploads": float(last.uploads),
        "kB up": last.bytes_up / 1e3,
        "kB down": last.bytes_down / 1e3,
        "seconds": perf_counter() - began,
        "met the target": float(found.reached is not None),
    }


def _flower(python: Path, seed: int) -> dict[str, float]:
    given = setting(OURS["fedmq, FedAvg, float32"], seed)
    train = given.task.train
    learner = learner_of(given.data, given.attack, train, devices=DEVICES, seed=seed)
    held, tensors = learner.world.held_out, unflatten(learner.spec, learner.initial())
    arrays = {"x_held": held.features, "y_held": held.targets.argmax(axis=1)}
    arrays |= {f"init_{name}": view for name, view in tensors.items()}
    for device in range(DEVICES):
        share = learner.world.share(device)
        arrays |= {f"x{device}": share.features, f"y{device}": share.targets.argmax(axis=1)}
    with tempfile.TemporaryDirectory() as where:
        data, plan, answer = (Path(where) / name for name in ("data.npz", "plan", "answer"))
        with data.open("wb") as stream:
            np.savez(stream, **arrays)
        said = {
            "names": list(tensors),
            "data": str(data),
            "epochs": train.epochs,
            "batch_size": train.batch_size,
            "learning_rate": train.learning_rate,
            "seed": seed,
            "devices": DEVICES,
            "cohort": COHORT,
            "rounds": 600,
            "target": TARGET,
        }
        plan.write_text(json.dumps(said))
        subprocess.run(
            [python, ROOT / "benchmarks" / "peers" / "flower_app.py", plan, answer],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        found = json.loads(answer.read_text())
    uploads = COHORT * (len(found["curve"]) - 2)  # up to the middle of the three, as ours
    last = [point["accuracy"] for point in found["curve"][-3:]]
    return {
        "uploads": float(uploads),
        "kB up": uploads * learner.spec.size * 4 / 1e3,
        "kB down": uploads * learner.spec.size * 4 / 1e3,
        "seconds": found["seconds"],
        "met the target": float(sum(last) / 3 >= TARGET),
    }


if __name__ == "__main__":
    sys.exit(run("flower", "The same work under Flower and here.", measure))
