"""Fleet files: what is read, and what is refused with its remedy."""

import sys
from pathlib import Path

import pytest

from edge_agent.importing import imported
from fedmq.simulator.virtual.fleet_file import read_fleet
from schemas.errors import ConfigError

WHOLE = """
name = "sensors"
devices = 5000
seed = 3
task = "task.toml"
links = { nb-iot = 0.7, lora-dr5 = 0.3 }
compute = { steps_per_second = 2.0, spread = 0.8 }
availability = { kind = "trace", trace = "there.csv" }
energy = { battery_j = 1e4, charge_hours = 3 }
participation = { mode = "slots", concurrency = 100, lost = 0.05 }
stop = { uploads = 1000, target = { accuracy = 0.9 } }
measure = { every = 50 }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_a_fleet_file_is_read_with_the_task_that_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text("[strategy]\nbuffer_size = 7\n")
    fleet = read_fleet(written(tmp_path, WHOLE))
    assert fleet.devices == 5000
    assert fleet.task.strategy.buffer_size == 7
    assert fleet.availability.trace == str(tmp_path / "there.csv")
    assert fleet.concurrency == 100
    assert fleet.lease_s == 600.0


def test_an_empty_file_is_a_fleet(tmp_path: Path) -> None:
    assert read_fleet(written(tmp_path, "")).participation.mode == "free"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("devices = 0", "devices"),
        ("devices = 10_000_001", "devices"),
        ("colour = 1", "colour"),
        ("participation = { mode = 'slots' }", "participation.concurrency"),
        ("participation = { mode = 'rounds' }", "task.strategy.name"),
        ("task = { strategy = { buffer_sise = 1 } }", "task.strategy.buffer_sise"),
        ("task = { gate = { canary = 0.1 } }", "task.gate"),
        ("links = { carrier-pigeon = 1 }", "links.carrier-pigeon"),
        ("links = { nb-iot = 0.0 }", "links"),
        ("links = { nb-iot = -1 }", "links.nb-iot"),
        ("availability = { kind = 'trace' }", "availability.trace"),
        ("availability = { kind = 'diurnal', hours = 0 }", "availability.hours"),
        ("task = { train = { when = { charging = true } } }", "task.train.when"),
        ("task.train.rounds_per_base = 2", "task.train.rounds_per_base"),
        ("task.evaluate.devices = false", "task.evaluate"),
        ("task.init.kind = 'zeros'", "task.init"),
        ("task.params.tensors = [{ name = 'w', shape = [2] }]", "task.params"),
        ("task.finish.metric = 'accuracy'", "task.finish.metric"),
        ("task.train.personal.head_epochs = 1", "task.train.personal.head_epochs"),
        ("task.train.personal.epochs = 2", "task.train.personal.epochs"),
        ("task.train.personal.pull = 1.0", "task.train.personal.pull"),
        (
            "data.source = 'turbofan:x'\ntask.train.personal.method = 'ditto'",
            "task.train.personal.method",
        ),
        (
            "data.trainer = 'm:C'\ntask.train.personal.method = 'ditto'",
            "task.train.personal.method",
        ),
        ("task.train.joules = 1.0\nenergy.train_w = 0.0", "energy.train_w"),
        ("stop.target.accuracy = nan", "stop.target.accuracy"),
        ("stop.target.accuracy = inf", "stop.target.accuracy"),
        (
            "participation.mode = 'rounds'\ntask.strategy = {max_staleness=0, buffer_size=2000}",
            "task.strategy.buffer_size",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_fleet(written(tmp_path, text))
    assert refused.value.field == field


def test_what_says_what_is_simulated_anyway_is_read(tmp_path: Path) -> None:
    told = "task.train = { rounds_per_base = 1, personal = { method = 'ditto', epochs = 2 } }"
    assert read_fleet(written(tmp_path, told)).task.train.personal.epochs == 2


@pytest.mark.parametrize("table", ["source", "held_out", "trainer"])
def test_a_module_of_ones_own_may_lie_beside_the_fleet_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"beside_the_fleet_{table}"
    (tmp_path / f"{name}.py").write_text("def given(): return 42\n")
    fleet = read_fleet(written(tmp_path, f"data.{table} = '{name}:given'"))
    assert imported(f"data.{table}", getattr(fleet.data, table))() == 42


@pytest.mark.parametrize("text", ["= 3", "task = 'nowhere.toml'"])
def test_a_file_that_cannot_be_read_is_told_by_its_path(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="toml"):
        read_fleet(written(tmp_path, text))
