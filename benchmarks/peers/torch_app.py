"""Runs inside an environment of its own that holds torch and onnxruntime: started by `onnx`.

steps     times steps of both, by turns, and prints seconds a step
bundles   writes the models' bundles, for processes that train without torch
train-onnx, train-torch   train for a while, and print the peak of resident memory
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import generator

BATCH = 32
PLAN: dict[str, Any] = json.loads(sys.argv[2])


def modules(seed: int) -> dict[str, Any]:
    """By name: (module, example of a batch, classes)."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    cnn = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    mlp = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return {
        "mlp": (mlp, torch.randn(BATCH, 64)),
        "cnn": (cnn, torch.randn(BATCH, 1, 28, 28)),
    }


def bundled(module: Any, example: Any, seed: int) -> Any:
    """The bundle of a module, and its initial vector."""
    from edge_agent.onnx.session import opened
    from fedmq.onnx_training import build
    from fedmq.onnx_training.from_torch import export
    from schemas.params import flatten

    built = build(
        export(module, example),
        loss="cross-entropy",
        run=opened,
        rng=generator(seed),
    )
    return built, flatten(built.bundle.manifest.params, built.theta0)


def onnx_step(step: bytes, theta: Any, x: Any, y: Any, *, threads: int, spinning: bool) -> Any:
    """One step of SGD on the flat vector."""
    from edge_agent.onnx.session import session_of

    session = session_of(step, what="the step", threads=threads, spinning=spinning)
    theta = theta.copy()

    def one() -> None:
        _, slope = session.run(["loss", "gradient"], {"x": x, "label": y, "theta": theta})
        np.subtract(theta, np.float32(0.01) * slope.astype(np.float32, copy=False), out=theta)

    return one


def torch_step(module: Any, x: Any, y: Any) -> Any:
    """One step of torch's own SGD."""
    import torch

    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    xs, ys = torch.from_numpy(x), torch.from_numpy(y)

    def one() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(module(xs), ys).backward()
        optimizer.step()

    return one


def seconds(one: Callable[[], None]) -> float:
    """The shortest of some batches of steps, a step."""
    shortest = float("inf")
    for _ in range(3):
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < 0.05:
            one()
            count += 1
        shortest = min(shortest, spent / count)
    return shortest


def steps() -> dict[str, Any]:
    """Time both, by turns."""
    import onnxruntime
    import torch

    torch.set_num_threads(PLAN["threads"])
    rng = generator(PLAN["seed"])
    found: dict[str, Any] = {}
    for name, (module, example) in modules(PLAN["seed"]).items():
        built, theta = bundled(module, example, PLAN["seed"])
        x = rng.standard_normal(tuple(example.shape)).astype(np.float32)
        y = rng.integers(0, 10, BATCH)
        step = built.bundle.step
        contenders = {
            "onnx": onnx_step(step, theta, x, y, threads=PLAN["threads"], spinning=False),
            "spinning": onnx_step(step, theta, x, y, threads=PLAN["threads"], spinning=True),
            "torch": torch_step(module, x, y),
        }
        for one in contenders.values():
            for _ in range(20):
                one()
        times: dict[str, list[float]] = {who: [] for who in contenders}
        for _ in range(PLAN["rounds"]):
            for who, one in contenders.items():
                times[who].append(seconds(one))
        found[name] = times
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    return {"models": found, "versions": versions}


def bundles() -> dict[str, Any]:
    """Write them."""
    from fedmq.bundle_folder import write_folder

    for name, (module, example) in modules(PLAN["seed"]).items():
        built, _ = bundled(module, example, PLAN["seed"])
        write_folder(Path(PLAN["folder"]) / name, built.bundle, built.theta0)
    return {}


def train_onnx() -> dict[str, Any]:
    """As a device does: its trainer, nothing of torch or onnx."""
    from edge_agent.onnx.trainer import OnnxTrainer
    from edge_agent.sources.samples import Samples
    from fedmq.bundle_folder import read_folder
    from schemas.task import TrainOptions

    bundle, theta0 = read_folder(Path(PLAN["folder"]) / PLAN["model"])
    rng = generator(0)
    x = rng.standard_normal((512, *bundle.manifest.x.shape)).astype(np.float32)
    samples = Samples(x, rng.integers(0, 10, 512))
    trainer = OnnxTrainer(bundle, samples, threads=1)
    trainer.train(theta0, TrainOptions(epochs=6, batch_size=BATCH, learning_rate=0.01), rng)
    assert "torch" not in sys.modules
    assert "onnx" not in sys.modules
    return {"peak_kib": peak_kib()}


def train_torch() -> dict[str, Any]:
    """The same work with torch."""
    import torch

    torch.set_num_threads(1)
    module, example = modules(0)[PLAN["model"]]
    rng = generator(0)
    x = rng.standard_normal((BATCH, *example.shape[1:])).astype(np.float32)
    one = torch_step(module, x, rng.integers(0, 10, BATCH))
    for _ in range(96):
        one()
    return {"peak_kib": peak_kib()}


def peak_kib() -> int:
    """Of this process, on Linux."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "steps": steps,
        "bundles": bundles,
        "train-onnx": train_onnx,
        "train-torch": train_torch,
    }
    print(json.dumps(parts[sys.argv[1]]()))
