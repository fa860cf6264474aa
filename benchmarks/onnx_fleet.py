"""ONNX models trained by a fleet over the real stack: broker, Valkey, bridge, aggregator, agents.

    cnn      digits on 20 devices, Dirichlet(0.3)
    encoder  the same, a small transformer encoder
    lstm     C-MAPSS FD001: 100 engines are 100 devices; remaining useful life, clipped at 125, from
             windows of 30 cycles; RMSE and the NASA score on the last window of the test engines
             (Saxena et al., "Damage propagation modeling", PHM 2008, section VI)

Every device is an agent with the bundle that the task brings and a file of its own data. Single
versions jump: told is the mean over the last five that were looked at, twice a second. Beside it
the same trainer on all data in one place, in as many local steps as all devices made together.
"""

import asyncio
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from aggregator.tasks import create_task, published_model, task_status
from benchmarks.learning.onnx_models import MODELS, SENSORS, WINDOW
from benchmarks.report import Aim, Arguments, Report, generator, progress, run
from edge_agent.agent import Agent
from edge_agent.onnx.bundled import BundleTrainer
from edge_agent.onnx.session import opened, session_of
from edge_agent.onnx.trainer import OnnxTrainer
from edge_agent.settings import AgentSettings
from edge_agent.sources.samples import Samples
from fedmq.bundle_folder import packed
from fedmq.demo.digits import digits_fleet
from fedmq.onnx_training import Built, build
from fedmq.servers import servers
from lifetimes.together import end
from redis_session.connection import connect
from schemas.bundle import Bundle, Loss
from schemas.codecs import CodecOptions
from schemas.names import TaskName
from schemas.onnx_file import with_parameters
from schemas.params import flatten, unflatten
from schemas.strategy import StrategyOptions
from schemas.task import Option, PublishOptions, TaskSpec, TrainOptions, checked_spec

TASK: Final = TaskName("onnx")
DATA: Final = Path(__file__).resolve().parents[2] / "shared" / "data" / "turbofan"
RUL_MAX: Final = 125.0
LOOKED_AT: Final = 5
CONSTANT: Final = (0, 1, 2, 3, 7, 8, 12, 18, 20, 21)
"""Columns of the 24 after engine and cycle that do not vary in FD001."""

ADAM: Final[dict[str, Option]] = {"optimizer": "adam", "clip": 1.0}

Array = NDArray[Any]
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Case:
    """One model, its data and how it is trained."""

    loss: Loss
    parts: Sequence[tuple[Array, Array]]
    judge: Callable[[Array], Figures]
    held_out: Array
    updates: int
    buffer_size: int
    train: TrainOptions
    uplink: str

    def spec(self, built: Built) -> TaskSpec:
        """The task of a bundle."""
        return checked_spec(
            TaskSpec(
                params=built.bundle.manifest.params,
                strategy=StrategyOptions(
                    buffer_size=self.buffer_size, server_lr=0.5, flush_after_s=5.0
                ),
                train=self.train,
                codec=CodecOptions("sq"),
                publish=PublishOptions(lattice=True),
                uplink=self.uplink,
            )
        )


def measure(arguments: Arguments) -> Report:
    """Train every model by a fleet, then in one place."""
    logging.getLogger("fedmq").setLevel(logging.ERROR)
    report = Report("onnx_fleet", 1)
    for name in ("cnn", "encoder") if arguments.quick or not DATA.exists() else MODELS:
        rng = generator(arguments.seed)
        case = _turbofan() if name == "lstm" else _digits(name, rng)
        built = build(MODELS[name](rng), loss=case.loss, run=opened, rng=rng)
        updates = case.updates // 4 if arguments.quick else case.updates
        with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as folder:
            fleet, spent = asyncio.run(
                _by_a_fleet(name, built, case, updates, where=Path(folder), seed=arguments.seed)
            )
        steps = _steps(case, spent["updates folded"])
        centre = _in_one_place(built, case, int(steps), rng)
        for figure, value in fleet.items():
            report.figures[f"{name}, fleet: {figure}"] = value
            report.figures[f"{name}, in one place: {figure}"] = centre[figure]
        report.figures |= {f"{name}: {what}": value for what, value in spent.items()}
        if not arguments.quick:
            report.aims.append(_aim(name, fleet, centre))
    if not DATA.exists():
        report.notes.append(f"no {DATA}: the lstm was left out")
    return report


def _aim(name: str, fleet: Figures, centre: Figures) -> Aim:
    if "rmse" in fleet:
        ratio = fleet["rmse"] / centre["rmse"]
        return Aim(f"{name}: RMSE over that in one place", ratio, at_most=1.15)
    behind = centre["accuracy"] - fleet["accuracy"]
    return Aim(f"{name}: points behind one place", behind, at_most=2.0)


# -- data ----------------------------------------------------------------------------------


def _digits(name: str, rng: np.random.Generator) -> Case:
    shape = (-1, 1, 8, 8) if name == "cnn" else (-1, 8, 8)
    split = digits_fleet(20, rng)
    held = split.held_out

    def judge(scores: Array) -> Figures:
        return {"accuracy": 100.0 * float(np.mean(scores.argmax(axis=1) == held.labels))}

    return Case(
        "cross-entropy",
        [(d.features.reshape(shape), d.labels) for d in split.devices],
        judge,
        held.features.reshape(shape),
        updates=2000,
        buffer_size=10,
        train=TrainOptions(epochs=3, batch_size=16, learning_rate=0.003, options=ADAM),
        uplink="256 B",
    )


def _turbofan() -> Case:
    train, test = (_engines(DATA / f"{which}_FD001.txt") for which in ("train", "test"))
    life = np.loadtxt(DATA / "RUL_FD001.txt")
    pooled = np.concatenate(train)
    mean, std = pooled.mean(axis=0), pooled.std(axis=0)
    parts = []
    for cycles in train:
        seen = ((cycles - mean) / std).astype(np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(seen, WINDOW, axis=0)
        left = np.arange(len(seen) - WINDOW, -1, -1.0)
        wanted = np.minimum(left, RUL_MAX)[:, None] / RUL_MAX
        parts.append((np.ascontiguousarray(windows.transpose(0, 2, 1)), wanted.astype(np.float32)))
    held = np.stack([_last(((cycles - mean) / std).astype(np.float32)) for cycles in test])
    true = np.minimum(life, RUL_MAX)

    def judge(found: Array) -> Figures:
        away = found[:, 0].astype(np.float64) * RUL_MAX - true
        score = np.where(away < 0, np.exp(-away / 13) - 1, np.exp(away / 10) - 1)
        return {"rmse": float(np.sqrt(np.mean(away**2))), "nasa score": float(score.sum())}

    return Case(
        "mse",
        parts,
        judge,
        held,
        updates=3000,
        buffer_size=20,
        train=TrainOptions(epochs=2, batch_size=32, learning_rate=0.003, options=ADAM),
        uplink="512 B",
    )


def _engines(file: Path) -> list[Array]:
    table = np.loadtxt(file)
    kept = [column for column in range(2, 26) if column - 2 not in CONSTANT]
    assert len(kept) == SENSORS
    return [table[table[:, 0] == engine][:, kept] for engine in np.unique(table[:, 0])]


def _last(cycles: Array) -> Array:
    """The last window; a shorter life is preceded by copies of its first cycle."""
    missing = max(0, WINDOW - len(cycles))
    return np.concatenate([np.repeat(cycles[:1], missing, axis=0), cycles])[-WINDOW:]


# -- by a fleet ----------------------------------------------------------------------------


async def _by_a_fleet(
    name: str, built: Built, case: Case, updates: int, *, where: Path, seed: int
) -> tuple[Figures, Figures]:
    spec, bundle = case.spec(built), built.bundle
    params = flatten(bundle.manifest.params, built.theta0)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(servers(where))
        redis = await stack.enter_async_context(connect(here.redis_url))
        await create_task(redis, TASK, spec, params, epoch=1, bundle=packed(bundle))
        agents = [
            _agent(number, part, where, here.mqtt_port, seed)
            for number, part in enumerate(case.parts)
        ]
        running = [asyncio.create_task(agent.run()) for agent in agents]
        began, said, folded = monotonic(), 0.0, 0
        last: dict[int, Array] = {}
        try:
            while folded < updates:
                for task in running:
                    if task.done():
                        task.result()
                status: dict[str, Any] = await task_status(redis, TASK) or {}
                folded = int(status.get("updates_folded", 0))
                if monotonic() - said > 5.0:
                    said = monotonic()
                    progress(f"onnx_fleet: {name}: {folded} of {updates} updates")
                model = await published_model(redis, TASK)
                if model is not None and folded > updates * 0.8:
                    last[model.manifest.version] = model.params
                await asyncio.sleep(0.5)
            spent = monotonic() - began
        finally:
            await end(running)
    newest = sorted(last)[-LOOKED_AT:]
    judged = [_judged(bundle, unflatten(spec.params, last[v]), case) for v in newest]
    found = {figure: fmean(each[figure] for each in judged) for figure in judged[0]}
    told = {
        "devices": float(len(agents)),
        "updates folded": float(folded),
        "seconds": spent,
        "bytes of an update": status["payload_bytes"] / folded,
        "mean staleness": status["staleness_mean"],
        "versions": float(newest[-1]),
    }
    return found, told


def _agent(number: int, part: tuple[Array, Array], folder: Path, port: int, seed: int) -> Agent:
    file = folder / f"data-{number:03}.npz"
    np.savez(file, x=part[0], y=part[1])
    settings = AgentSettings(
        device=f"device-{number:03}",
        task=TASK,
        trainer="",
        data=str(file),
        mqtt_port=port,
        state_dir=str(folder / "devices"),
        seed=seed * 1000 + number,
        threads=1,
    )
    return Agent(settings, BundleTrainer(settings))


def _steps(case: Case, updates: float) -> float:
    """Local steps that all devices made together, by the mean device."""
    options = case.train
    each = [-(-len(x) // options.batch_size) * options.epochs for x, _ in case.parts]
    return updates * sum(each) / len(each)


# -- in one place --------------------------------------------------------------------------


def _in_one_place(built: Built, case: Case, steps: int, rng: np.random.Generator) -> Figures:
    """The same descent on all data: as many steps, on batches of the same size."""
    x, y = (np.concatenate(arrays) for arrays in zip(*case.parts, strict=True))
    options = case.train
    epochs = max(1, round(steps * options.batch_size / len(x)))
    whole = msgspec.structs.replace(options, epochs=epochs)
    progress(f"onnx_fleet: in one place, {epochs} epochs of {len(x)} samples")
    trainer = OnnxTrainer(built.bundle, Samples(x, y), threads=1)
    found = trainer.train(built.theta0, whole, rng)
    return _judged(built.bundle, found.tensors, case)


def _judged(bundle: Bundle, tensors: Any, case: Case) -> Figures:
    session = session_of(with_parameters(bundle.infer, tensors), what="the model", threads=1)
    return case.judge(session.run(None, {bundle.manifest.x.name: case.held_out})[0])


if __name__ == "__main__":
    sys.exit(run("onnx_fleet", "ONNX models trained by a fleet over the real stack.", measure))
