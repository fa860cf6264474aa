"""Twenty radios learn the digits in virtual days: accuracy over bytes, air time and days.

The MLP 64-128-10 (9,610 parameters), dealt as in the demo (Dirichlet 0.3), every update one LoRaWAN
frame of `sq`; EU868, one gateway, 10 % of the frames lost each way, 5 % told twice. The radio, the
network server and the air are simulated (`fedmq.simulator.lora_fleet`); the adapter's decisions and
the fold are the real ones, and every model that comes down is proved by its digest.

    dr0    SF12, 51 bytes, private network, 1 % duty cycle: one day, policies one by one
    ttn    SF7, SF8, SF9 within The Things Network's fair use (30 s up, 8 of 10 downlinks): 5 days

All but what a row names is as in `dr0 base`: K = 60 (ttn: 200), updates more than 2 versions stale
do not count, [publish] step = 0.125, 3 local epochs (ttn: 10), a new transfer as soon as the last
one is complete. `dr0 best` has step = 0.25, and begins a transfer when a device is 2 versions
behind.
"""

import sys
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Final, Literal

import numpy as np

from benchmarks.report import Aim, Arguments, Report, generator, progress, run
from broker.lorawan.regions import network, region
from broker.lorawan.transfers import Policy
from edge_agent.trainers.evaluation import accuracy
from edge_agent.trainers.examples import Examples
from edge_agent.trainers.layers import numbered_names
from edge_agent.trainers.local_training import gradient_on
from edge_agent.trainers.sgd import Descent, descend
from fedmq.demo.digits import digits_fleet
from fedmq.simulator.lora_fleet import Air, Fleet
from fedmq.simulator.radio import Train
from schemas.codecs import CodecOptions
from schemas.initial import initial_params, mlp_shapes
from schemas.params import Params, ParamSpec, TensorSpec, unflatten
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import InitOptions, PublishOptions, TaskSpec

DEVICES: Final = 20
PARAMS: Final = ParamSpec(
    tuple(TensorSpec(name, shape) for name, shape in mlp_shapes(64, (128,), 10).items())
)
LAST: Final = 3
"""Evaluations at the end whose mean is what a run has reached."""


@dataclass(frozen=True, slots=True)
class Way:
    """How one fleet works.

    Attributes:
        sf: the spreading factor.
        network: whose fair use holds.
        days: how long.
        buffer_size: the server's K.
        epochs: local epochs a frame.
        max_staleness: updates staler than this do not count.
        weight: what staleness takes of an update's weight: nothing, or (1 + s)^-1.
        step: of the lattice; 0: by the shape.
        behind: publications a device is behind before it is sent a newer model.
        polls: whether devices send no updates while a model comes down, but short frames.
        downlinks: a day to one device; 0: no bound.
    """

    sf: int = 12
    network: str = "private"
    days: float = 1.0
    buffer_size: int = 60
    epochs: int = 3
    max_staleness: int = 2
    weight: Literal["constant", "polynomial"] = "constant"
    step: float = 0.125
    behind: int = 1
    polls: bool = False
    downlinks: int = 0


DR0: Final = Way()
BEST: Final = replace(DR0, behind=2, step=0.25)
TTN: Final = Way(network="ttn", days=5.0, buffer_size=200, epochs=10, downlinks=8)

WAYS: Final = {
    "dr0 base": DR0,
    "dr0 best": BEST,
    "dr0 best, 3 days": replace(BEST, days=3.0),
    "dr0 stale updates count": replace(DR0, max_staleness=65_535),
    "dr0 weight (1 + s)^-1": replace(DR0, max_staleness=65_535, weight="polynomial"),
    "dr0 at most 1 stale": replace(DR0, max_staleness=1),
    "dr0 at most 4 stale": replace(DR0, max_staleness=4),
    "dr0 polls while stale": replace(DR0, polls=True),
    "dr0 every 2nd version": replace(DR0, behind=2),
    "dr0 every 4th, at most 8 stale": replace(DR0, behind=4, max_staleness=8),
    "dr0 K 20": replace(DR0, buffer_size=20),
    "dr0 K 120": replace(DR0, buffer_size=120),
    "dr0 K 200": replace(DR0, buffer_size=200),
    "dr0 1 epoch": replace(DR0, epochs=1),
    "dr0 10 epochs": replace(DR0, epochs=10),
    "dr0 step by shape (1/32)": replace(DR0, step=0.0),
    "dr0 step 1/4": replace(DR0, step=0.25),
    "ttn sf7": replace(TTN, sf=7),
    "ttn sf8": replace(TTN, sf=8),
    "ttn sf9": replace(TTN, sf=9),
    "ttn sf9, 3 epochs": replace(TTN, sf=9, epochs=3),
}
QUICK: Final = {
    "dr0 best": replace(BEST, days=0.5),
    "ttn sf7": replace(TTN, sf=7, days=2.0),
}


def spec_of(way: Way, seed: int) -> TaskSpec:
    """The task."""
    return TaskSpec(
        PARAMS,
        strategy=StrategyOptions(
            buffer_size=way.buffer_size,
            staleness=StalenessOptions(way.weight, 1.0),
            max_staleness=way.max_staleness,
            flush_after_s=0.0,
        ),
        codec=CodecOptions("sq"),
        publish=PublishOptions(lattice=True, step=way.step),
        init=InitOptions(seed=seed),
    )


def trainer(examples: Examples, how: Descent) -> Train:
    """Minibatch SGD on one device's examples."""
    gradient = gradient_on(PARAMS, numbered_names(2), examples)

    def train(base: Params, rng: "np.random.Generator") -> tuple[Params, int]:
        return descend(base, gradient, len(examples), how, rng), len(examples)

    return train


def lived(way: Way, seed: int) -> dict[str, float]:
    """Run one fleet; what came of it, an average device's where a device is named."""
    rng = generator(seed)
    dealt = digits_fleet(DEVICES, rng)
    spec = spec_of(way, seed)
    how = Descent(epochs=way.epochs, batch_size=16, learning_rate=0.2)
    here = region("eu868")
    air = Air(here, network(way.network), here.rate(way.sf), polls=way.polls)
    fleet = Fleet(
        spec,
        origin=initial_params(PARAMS, InitOptions(seed=seed), generator(seed)),
        trains=[trainer(part, how) for part in dealt.devices],
        air=air,
        policy=Policy(behind=way.behind, day=way.downlinks),
        rng=rng,
    )
    scores: list[tuple[float, float]] = []
    for day in fleet.run(way.days, way.days * 86_400.0 / 24):
        model = fleet.published()
        assert model is not None
        tensors = unflatten(PARAMS, model)
        score = accuracy(tensors, dealt.held_out.features, dealt.held_out.labels)
        scores.append((day, 100 * score))
    return _figures(fleet, way, scores)


def _figures(fleet: Fleet, way: Way, scores: list[tuple[float, float]]) -> dict[str, float]:
    spent, tally = fleet.spent, fleet.fold.state.tally
    assert not any(radio.wrong for radio in fleet.radios.values())
    heard = tally.folded + sum(tally.rejected.values())
    day = DEVICES * way.days
    return {
        "accuracy, %": fmean(score for _, score in scores[-LAST:]),
        "days to 90 %": next((day for day, score in scores if score >= 90), float("nan")),
        "kB up a device": spent.up_bytes / DEVICES / 1000,
        "kB down a device": spent.down_bytes / DEVICES / 1000,
        "uplinks a device and day": (spent.frames + spent.polls) / day,
        "air s up a device and day": spent.up_air_s / day,
        "downlinks a device and day": spent.downs / day,
        "models a device and day": spent.adopted / day,
        "bytes a model": spent.down_bytes * (1 - 0.1) / max(1, spent.adopted),
        "windows that met no free band, a device and day": fleet.server.held / day,
        "staleness, versions": tally.staleness_sum / max(1, tally.folded),
        "share too stale": sum(tally.rejected.values()) / max(1, heard),
        "versions": float(fleet.fold.state.model.version),
        "keyframe, bytes": float(len(fleet.fold.state.lattice.keyframe))
        if fleet.fold.state.lattice
        else 0.0,
    }


def measure(arguments: Arguments) -> Report:
    """Run every way; one seed with --quick, else two."""
    ways = QUICK if arguments.quick else WAYS
    seeds = range(arguments.seed, arguments.seed + (1 if arguments.quick else 2))
    report = Report("lorawan", len(seeds))
    for name, way in ways.items():
        progress(name)
        runs = [lived(way, seed) for seed in seeds]
        for figure in runs[0]:
            report.figures[f"{name}: {figure}"] = fmean(one[figure] for one in runs)
    report.aims = _aims(report.figures, quick=arguments.quick)
    report.notes = [
        f"{DEVICES} devices, {PARAMS.size} parameters, means over {len(seeds)} seed(s)",
        "virtual time: figures are those of the seed, not of this machine",
    ]
    return report


def _aims(figures: dict[str, float], *, quick: bool) -> list[Aim]:
    least = (
        {"dr0 best": 86.0, "ttn sf7": 88.0}
        if quick
        else {
            "dr0 best": 92.0,
            "dr0 best, 3 days": 95.0,
            "ttn sf7": 94.0,
            "ttn sf9": 91.0,
        }
    )
    aims = [
        Aim(f"{name}: accuracy, %", figures[f"{name}: accuracy, %"], at_least=bound)
        for name, bound in least.items()
    ]
    air = figures["ttn sf7: air s up a device and day"]
    aims.append(Aim("ttn sf7: air s up a device and day", air, at_most=30.0))
    downs = figures["ttn sf7: downlinks a device and day"]
    aims.append(Aim("ttn sf7: downlinks a device and day", downs, at_most=10.0))
    return aims


if __name__ == "__main__":
    sys.exit(run("lorawan", "Twenty radios learn the digits in virtual days.", measure))
