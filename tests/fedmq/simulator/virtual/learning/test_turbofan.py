"""One engine a device, read from C-MAPSS' text files."""

from pathlib import Path

import numpy as np
import pytest

from fedmq.simulator.virtual.learner import Job
from fedmq.simulator.virtual.learning.attack_options import AttackOptions
from fedmq.simulator.virtual.learning.data_options import DataOptions
from fedmq.simulator.virtual.learning.learner import learner_of
from fedmq.simulator.virtual.learning.turbofan import SENSORS, WINDOW, read_turbofan
from schemas.errors import ConfigError
from schemas.task import TrainOptions


def engines(folder: Path, count: int) -> Path:
    """C-MAPSS' columns: engine, cycle, 3 settings, 21 sensors that tell the remaining cycles."""
    rng, path = np.random.Generator(np.random.PCG64(1)), folder / "train_FD001.txt"
    rows = []
    for engine in range(1, count + 1):
        life = 60 + 5 * engine
        for cycle in range(1, life + 1):
            sensors = rng.normal(size=21) / 20 - min(life - cycle, 125) / 125
            rows.append([engine, cycle, 0, 0, 0, *sensors])
    np.savetxt(path, rows, fmt="%.4f")
    return path


def test_every_engine_is_a_device_and_cycles_are_told(tmp_path: Path) -> None:
    data = DataOptions(f"turbofan:{engines(tmp_path, 10)}", hidden=(4,))
    train = TrainOptions(epochs=5, learning_rate=0.02)
    learner = learner_of(data, AttackOptions(), train, devices=8, seed=1)
    params = learner.initial()
    before = learner.evaluate(params)["rmse"]
    found = learner.train([Job(d, 0, params, 0.0) for d in range(8)])
    assert found[0].num_examples == 65 - 30 + 1
    params = params + np.mean([trained.delta for trained in found], axis=0)
    assert learner.evaluate(params)["rmse"] < 15 < before
    assert learner.label_of(0) == 0


def test_the_features_are_scaled_windows_and_a_sensor_that_stands_still_is_no_harm(
    tmp_path: Path,
) -> None:
    path = engines(tmp_path, 5)
    table = np.loadtxt(path)
    table[:, 4 + SENSORS[0]] = 7.0
    np.savetxt(path, table, fmt="%.4f")
    devices, held_out = read_turbofan(path)
    assert [len(share) for share in devices] == [36, 41, 46, 51]
    assert len(held_out) == 85 - WINDOW + 1
    for share in (*devices, held_out):
        assert share.features.shape[1] == WINDOW * len(SENSORS)
        assert np.abs(share.features).max() <= 1
        left = np.arange(len(share))[::-1]
        np.testing.assert_allclose(share.targets.ravel(), left / 125, rtol=1e-6)


def test_the_last_window_of_every_test_engine_judges_where_there_are_some(tmp_path: Path) -> None:
    path = engines(tmp_path, 3)
    np.savetxt(tmp_path / "test_FD001.txt", np.loadtxt(path)[:65], fmt="%.4f")
    (tmp_path / "RUL_FD001.txt").write_text("25\n")
    devices, held_out = read_turbofan(path)
    assert len(devices) == 3
    assert held_out.targets.ravel().tolist() == [np.float32(0.2)]
    np.testing.assert_array_equal(held_out.features[0], devices[0].features[-1])
    (tmp_path / "RUL_FD001.txt").write_text("25\n30\n")
    with pytest.raises(ConfigError, match=r"data\.source"):
        read_turbofan(path)


@pytest.mark.parametrize("text", ["", "1 2 3\n", "no number\n", "1 1" + " 0.5" * 24 + "\n"])
def test_what_is_no_such_file_is_refused_in_a_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "train_FD001.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"data\.source: .*train_FD001\.txt"):
        read_turbofan(path)
