from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.pump_faults.make_data import csvs, main
from examples.pump_faults.trainer import CsvTrainer
from schemas.initial import initial_params
from schemas.params import flatten, unflatten
from schemas.task import TaskFile, TaskSpec, read_task_file

HERE = Path(__file__).parents[2] / "examples" / "pump_faults"
PUMPS = ("pump-1", "pump-2", "pump-3")
Tensors = Mapping[str, NDArray[np.float32]]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def task() -> TaskFile:
    return read_task_file((HERE / "task.toml").read_text())


@pytest.fixture(scope="module")
def spec(task: TaskFile) -> TaskSpec:
    assert task.params is not None
    return task.spec(task.params)


@pytest.fixture(scope="module")
def pumps() -> list[CsvTrainer]:
    return [CsvTrainer(csv=str(HERE / f"{pump}.csv"), label="fault") for pump in PUMPS]


def start(task: TaskFile, spec: TaskSpec) -> Tensors:
    return unflatten(spec.params, initial_params(spec.params, task.init, generator()))


def accuracy(pump: CsvTrainer, tensors: Tensors) -> float:
    return float(np.mean((pump.x @ tensors["w"] + tensors["b"] > 0) == pump.y))


def together(pumps: list[CsvTrainer], tensors: Tensors, spec: TaskSpec, rounds: int) -> Tensors:
    """Average what all pumps learn, again and again."""
    rng = generator()
    for _ in range(rounds):
        ends = [pump.train(tensors, spec.train, rng).tensors for pump in pumps]
        flats = [flatten(spec.params, end) for end in ends]
        tensors = unflatten(spec.params, np.mean(flats, axis=0, dtype=np.float32))
    return tensors


def test_the_csvs_are_what_their_seed_draws() -> None:
    drawn = csvs()
    assert set(drawn) == set(PUMPS)
    for pump, text in drawn.items():
        assert (HERE / f"{pump}.csv").read_text() == text


def test_the_script_writes_the_csvs_beside_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("examples.pump_faults.make_data.__file__", str(tmp_path / "make_data.py"))
    main()
    assert {file.stem: file.read_text() for file in tmp_path.glob("*.csv")} == csvs()
    assert "pump-3.csv" in capsys.readouterr().out


def test_a_pump_learns_its_own_faults(
    task: TaskFile, spec: TaskSpec, pumps: list[CsvTrainer]
) -> None:
    alone = together(pumps[:1], start(task, spec), spec, 30)
    assert accuracy(pumps[0], alone) > 0.95


def test_only_the_fleet_knows_all_faults(
    task: TaskFile, spec: TaskSpec, pumps: list[CsvTrainer]
) -> None:
    alone = together(pumps[:1], start(task, spec), spec, 30)
    fleet = together(pumps, start(task, spec), spec, 30)
    assert all(accuracy(pump, alone) < 0.75 for pump in pumps[1:])
    assert all(accuracy(pump, fleet) > 0.9 for pump in pumps)


def test_the_trainer_answers_with_the_tensors_of_the_task(
    task: TaskFile, spec: TaskSpec, pumps: list[CsvTrainer]
) -> None:
    tensors = start(task, spec)
    result = pumps[0].train(tensors, spec.train, generator())
    assert flatten(spec.params, result.tensors).dtype == np.float32
    assert result.num_examples == 240
    assert 0 <= result.metrics["accuracy"] <= 1
    assert not tensors["w"].any(), "the tensors that came in stay as they were"


def test_the_readme_names_what_exists() -> None:
    text = (HERE / "README.md").read_text()
    assert "examples.pump_faults.trainer:CsvTrainer" in text
    assert all(f"examples/pump_faults/{pump}.csv" in text for pump in PUMPS)
    assert sum(file.stat().st_size for file in HERE.glob("*.csv")) <= 30_000
