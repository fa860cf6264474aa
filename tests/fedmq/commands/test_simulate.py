"""`fedmq simulate` as people run it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedmq.cli import main
from fedmq.commands import simulating
from fedmq.commands.simulating import Changes, fleets_of
from fedmq.simulator.virtual import scaling
from fedmq.simulator.virtual.fleet_file import read_fleet
from fedmq.simulator.virtual.presets import PRESET, preset
from schemas.errors import ConfigError

FLEETS = Path(__file__).parents[3] / "examples" / "fleets"
ENV = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")} | {"NO_COLOR": "1"}
SMALL = 'devices = 60\n[stop]\nuploads = 60\n[participation]\nmode = "slots"\nconcurrency = 10\n'


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def simulate(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*arguments: object) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(["simulate", *map(str, arguments)])
        assert isinstance(ended.value.code, int)
        said = capsys.readouterr()
        return Done(ended.value.code, said.out, said.err)

    return run


def test_one_object_for_a_script_and_one_seed_has_one_result(
    tmp_path: Path, simulate: Callable[..., Done]
) -> None:
    pytest.importorskip("sklearn")
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    arguments = [str(file), "--quick", "--json", "--seed"]
    process = [sys.executable, "-m", "fedmq.cli", "simulate", *arguments, "5"]
    elsewhere = subprocess.run(process, env=ENV, capture_output=True, timeout=60, check=True)
    first = json.loads(elsewhere.stdout)
    again, other = (json.loads(simulate(*arguments, seed).out) for seed in (5, 6))
    names = {"devices", "version", "accuracy", "events", "events_per_second", "digest"}
    assert names <= first.keys()
    assert (first["devices"], first["uploads"], first["name"]) == (60, 60, "small")
    assert first["digest"] == again["digest"] != other["digest"]


def test_the_example_is_the_fleet_that_runs_without_a_file(simulate: Callable[..., Done]) -> None:
    done = simulate("--example")
    assert done.out == PRESET
    assert tomllib.loads(done.out)["stop"]["uploads"] == preset().stop.uploads


def test_a_missed_target_ends_with_1_and_the_table_holds_both(
    tmp_path: Path, simulate: Callable[..., Done]
) -> None:
    pytest.importorskip("sklearn")
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text(SMALL.replace("uploads = 60", "uploads = 60\ntarget = { accuracy = 1.0 }"))
    two.write_text(SMALL)
    done = simulate("--compare", one, two)
    assert done.code == 1, done.err
    assert "spent to accuracy 100.0%" in done.out
    assert re.search(r"^uploads +never +never$", done.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.toml"], ["nowhere.toml", "cannot be read"]),
        (["--compare", "a.toml"], ["compare", "two fleet files"]),
        (["a.toml", "b.toml"], ["FLEET.toml", "--compare"]),
        (["--scale", "--devices", "9"], ["devices", "leave it out"]),
    ],
)
def test_what_cannot_work_is_told_in_one_line(
    arguments: list[str], words: list[str], simulate: Callable[..., Done]
) -> None:
    done = simulate(*arguments)
    (line,) = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert all(word in line for word in words), line


def test_pictures_that_cannot_be_written_are_refused_before_the_run(
    tmp_path: Path, simulate: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(simulating, "simulated", lambda *_: pytest.fail("it has run"))
    (tmp_path / "file").write_text("")
    done = simulate("--plots", tmp_path / "file" / "plots")
    (line,) = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert "plots" in line


def test_a_target_is_refused_where_one_of_the_compared_does_not_measure_it(tmp_path: Path) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("stop.target.accuracy = 0.5\n")
    two.write_text("data.source = 'turbofan:train_FD001.txt'\nstop.target.rmse = 15.0\n")
    for files, field in (([one, two], "accuracy"), ([two, one], "rmse")):
        with pytest.raises(ConfigError) as refused:
            fleets_of(files, Changes())
        assert refused.value.field == f"stop.target.{field}"


def test_who_interrupts_hears_what_was_reached(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    file = tmp_path / "long.toml"
    file.write_text(SMALL.replace("uploads = 60", "uploads = 100000000"))
    running = subprocess.Popen(
        [sys.executable, "-c", _SOON, str(file)], env=ENV, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert re.search(r"stopped; long: \d+ uploads, version \d+", said), said
    assert "Traceback" not in said


_SOON = """
import os, signal, sys
from fedmq import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job would ignore it
from fedmq.simulator.virtual import training
done, bench = training.Bench.done, []
def interrupted(self, work):
    bench.append(work)
    if len(bench) == 30:
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
    return done(self, work)
training.Bench.done = interrupted
cli.main(["simulate", sys.argv[1]])
"""


def test_every_example_is_a_fleet() -> None:
    names = {read_fleet(file).name for file in FLEETS.glob("*.toml")}
    assert names == {"async", "sync", "attacked", "meters"}


def test_all_that_are_compared_have_the_target_of_the_first() -> None:
    files = [FLEETS / "async.toml", FLEETS / "meters-nb-iot.toml"]
    assert [f.stop.target for f in fleets_of(files, Changes())] == [{"accuracy": 0.92}] * 2
    assert [f.stop.target for f in fleets_of(files[::-1], Changes())] == [{}] * 2
    (quick,) = fleets_of(files[:1], Changes(devices=7000, seed=3, most=400))
    assert (quick.devices, quick.seed, quick.stop.uploads, quick.stop.target) == (7000, 3, 400, {})


def test_the_scale_judges_the_largest_by_the_smallest() -> None:
    costs = [
        scaling.Cost(size, 10, us, 100.0, "d")
        for size, us in zip(scaling.SIZES, (100.0, 120.0, 140.0, 160.0), strict=True)
    ]
    assert scaling.ratio(costs) == 1.6
    assert "MORE than 1.5" in scaling.in_words(costs)
    assert list(scaling.order())[3:5] == [1_000_000] * 2
