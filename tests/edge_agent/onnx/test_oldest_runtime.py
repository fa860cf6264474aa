"""The oldest onnxruntime that reads our graphs learns what the newest does."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.learning.onnx_models import MODELS
from benchmarks.peers.environment import ROOT
from edge_agent.onnx.session import opened
from edge_agent.onnx.trainer import OnnxTrainer
from edge_agent.sources.samples import Samples
from fedmq.bundle_folder import read_folder, write_folder
from fedmq.onnx_training import build
from schemas.params import flatten
from schemas.task import TrainOptions
from scripts.peers import OLDEST_NAME

PYTHON = ROOT / ".cache" / "peers" / OLDEST_NAME / "bin" / "python"

_TRAIN = """
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from edge_agent.onnx.trainer import OnnxTrainer
from edge_agent.sources.samples import Samples
from fedmq.bundle_folder import read_folder
from schemas.params import flatten
from schemas.task import TrainOptions
folder = Path(sys.argv[1])
bundle, theta0 = read_folder(folder / "bundle")
data = np.load(folder / "data.npz")
trainer = OnnxTrainer(bundle, Samples(data["x"], data["y"]), threads=1)
options = TrainOptions(epochs=2, batch_size=8, learning_rate=0.02)
found = trainer.train(theta0, options, np.random.default_rng(3))
np.save(folder / "found.npy", flatten(bundle.manifest.params, found.tensors))
print(json.dumps([onnxruntime.__version__, np.__version__]))
"""


@pytest.mark.skipif(not PYTHON.exists(), reason="needs onnxruntime 1.18.1: make peers")
@pytest.mark.parametrize("name", MODELS)
def test_the_oldest_runtime_learns_what_the_newest_does(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(7)

    built = build(
        MODELS[name](rng), loss="mse" if name == "lstm" else "cross-entropy", run=opened, rng=rng
    )
    write_folder(tmp_path / "bundle", built.bundle, built.theta0)
    bundle, theta0 = read_folder(tmp_path / "bundle")
    x = rng.standard_normal((32, *bundle.manifest.x.shape)).astype(np.float32)
    y = rng.uniform(size=(32, 1)).astype(np.float32) if name == "lstm" else rng.integers(0, 10, 32)
    np.savez(tmp_path / "data.npz", x=x, y=y)
    done = subprocess.run(
        [PYTHON, "-c", _TRAIN, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["1.18.1", "1.26.4"]
    trainer = OnnxTrainer(bundle, Samples(x, y), threads=1)
    options = TrainOptions(epochs=2, batch_size=8, learning_rate=0.02)
    found = trainer.train(theta0, options, np.random.default_rng(3))
    newest, start = (flatten(bundle.manifest.params, t) for t in (found.tensors, theta0))
    oldest = np.load(tmp_path / "found.npy")
    assert np.abs(newest - start).max() > 1e-3, "something was learnt"
    np.testing.assert_allclose(oldest, newest, atol=2e-5)
