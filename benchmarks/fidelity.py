"""Does the simulator tell the truth? The demo, run for real and in virtual time.

Five real runs (broker, bridge, Valkey, aggregator and twenty agents behind links that are cut all
the time) and five simulated ones with the same task, split, first model and trainer. Compared is
the accuracy of the published model over the updates that were folded: the simulated mean has to lie
within two standard deviations of the real runs' mean, at every place where it is looked at.

In a mean cycle of the demo's weather a real device sends two updates: what it has trained before
its link went, when that is up again, and what it trains from the model that it then finds. So a
simulated one wakes twice a cycle, and its training takes half an outage: the mean age of the two.
Nothing is fitted; the real runs' updates a second tell whether that is so.
"""

import asyncio
import json
import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Final

import msgspec
import numpy as np

from benchmarks.report import Aim, Arguments, Report, progress, run
from benchmarks.virtual.runs import fleet
from fedmq.demo.digits import CLASSES, digits_fleet
from fedmq.demo.run import FIRST, HIDDEN, WEATHER, Plan, demo_spec
from fedmq.demo.run import run as run_demo
from fedmq.simulator.virtual.engine import run as simulate
from fedmq.simulator.virtual.learning.learner import NetworkLearner, learner_of
from fedmq.simulator.virtual.learning.share import one_hot
from fedmq.simulator.virtual.learning.worlds import World
from schemas.initial import initial_params
from schemas.params import Params

RUNS: Final = 5
SECONDS: Final = 60.0
PLACES: Final = (60, 120, 180, 240)
"""Folded updates."""

DEVICES: Final = 20

assert WEATHER.outages is not None
TRAINS_S: Final = WEATHER.outages.offline_s / 2
WAKES_S: Final = (WEATHER.outages.online_s + WEATHER.outages.offline_s) / 2

Curve = list[tuple[float, float]]


class AsInTheDemo(NetworkLearner):
    """With the demo's first model."""

    def initial(self) -> Params:
        """As every device draws it."""
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(FIRST.seed)))
        return initial_params(self.spec, FIRST, rng)


def measure(arguments: Arguments) -> Report:
    """Run both, one after the other."""
    logging.getLogger("fedmq").setLevel(logging.ERROR)  # bad links are what the demo is about
    count = 2 if arguments.quick else RUNS
    report = Report("fidelity", count)
    seeds = range(arguments.seed, arguments.seed + count)
    real, virtual, ages = [], [], []
    for seed in seeds:
        curve, age = _real(seed)
        real.append(curve)
        ages.append(age)
        progress(f"fidelity: real run {seed}: {curve[-1]}")
    report.figures["real runs: staleness"] = fmean(ages)
    report.figures["real runs: updates a second"] = fmean(curve[-1][0] / SECONDS for curve in real)
    report.figures["by the weather: updates a second"] = DEVICES / WAKES_S
    ages = []
    for seed in seeds:
        curve, age = _virtual(seed)
        virtual.append(curve)
        ages.append(age)
    report.figures["simulated runs: staleness"] = fmean(ages)
    for place in PLACES:
        if any(curve[-1][0] < place for curve in real + virtual):
            report.notes.append(f"not every run came to {place} updates")
            continue
        seen = [100 * _at(curve, place) for curve in real]
        told = fmean(100 * _at(curve, place) for curve in virtual)
        report.figures |= {
            f"after {place} updates: real accuracy": fmean(seen),
            f"after {place} updates: real deviation": stdev(seen),
            f"after {place} updates: simulated accuracy": told,
        }
        away = abs(told - fmean(seen)) / stdev(seen)
        report.aims.append(Aim(f"after {place} updates: real deviations away", away, at_most=2.0))
    return report


def _at(curve: Curve, place: float) -> float:
    """The mean of the three versions around a place: single ones jump."""
    nearest = sorted(curve, key=lambda point: abs(point[0] - place))[:3]
    return fmean(accuracy for _, accuracy in nearest)


def _real(seed: int) -> tuple[Curve, float]:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        plan = Plan(devices=DEVICES, target=2.0, longest_s=SECONDS, seed=seed)
        summary = asyncio.run(run_demo(plan, folder, lambda _progress: None))
        lines = [json.loads(line) for line in (folder / "events.jsonl").open()]
    curve = [(e["folded"], e["accuracy"]) for e in lines if e["event"] == "version"]
    return curve, float(summary.staleness["mean"])


def _virtual(seed: int) -> tuple[Curve, float]:
    spec = demo_spec()
    split = digits_fleet(DEVICES, np.random.Generator(np.random.PCG64(seed)))
    steps = fmean(-(-len(d) // spec.train.batch_size) for d in split.devices) * spec.train.epochs
    tables = {
        "devices": DEVICES,
        "seed": seed,
        "data": {"hidden": [HIDDEN]},
        "compute": {"steps_per_second": steps / TRAINS_S, "spread": 0.0},
        "availability": {"period_s": WAKES_S},
        "stop": {"uploads": PLACES[-1] + 30},
        "measure": {"every": 6},
        "task": {
            name: msgspec.to_builtins(getattr(spec, name))
            for name in ("strategy", "train", "codec", "publish", "uplink")
        },
    }
    given = fleet(tables)
    plain = learner_of(given.data, given.attack, given.task.train, devices=DEVICES, seed=seed)
    shares = [one_hot(d.features, d.labels, CLASSES) for d in split.devices]
    held = one_hot(split.held_out.features, split.held_out.labels, CLASSES)
    world = World(held, lambda device: np.arange(len(shares[device])), shares.__getitem__)
    fields = {name: getattr(plain, name) for name in NetworkLearner.__dataclass_fields__}
    learner = replace(AsInTheDemo(**fields), world=world)
    found = simulate(given, learner, lambda _progress: None)
    folded = found.outcomes["folded"] / max(1, found.samples[-1].uploads)
    curve = [(sample.uploads * folded, sample.figures["accuracy"]) for sample in found.samples]
    return curve, found.staleness_mean


if __name__ == "__main__":
    sys.exit(run("fidelity", "The demo for real and in virtual time.", measure))
