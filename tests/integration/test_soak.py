"""`fedmq soak` as its user meets it: a kept promise, planted bugs, Ctrl-C, and going on."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from servers import ROOT

from aggregator.tasks import published_model
from fedmq.simulator.soak.fleet import Fleet, fleet
from fedmq.simulator.soak.plan import TASK, Plan
from fedmq.simulator.soak.programs import faketime
from fedmq.simulator.soak.run import _begin
from fedmq.simulator.soak.schedule import KINDS, Fault
from fedmq.simulator.soak.strike import heal, strike
from redis_session.connection import connect

pytestmark = pytest.mark.xdist_group("soak")  # one after the other: each takes what there is

PATIENCE_S = 300
PACKAGES = (
    *("schemas", "lifetimes", "mqtt_session", "redis_session"),
    *("edge_agent", "broker", "aggregator", "fedmq"),
)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fedmq.cli", "soak", *arguments]


def environ() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}


def soak(*arguments: str, code: int = 0, cwd: Path = ROOT) -> dict[str, Any]:
    """Run it, expect an exit code, read its report."""
    done = subprocess.run(
        command(*arguments, "--json"),
        env=environ(),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of pytest, whichever its worker."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def alone(shared: Path) -> Iterator[None]:
    """One soak at a time, also where workers do not keep a group together (pytest-xdist #1386)."""
    with (shared / "soak.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def _alone(shared: Path) -> Iterator[None]:
    with alone(shared):
        yield


@pytest.fixture(scope="module")
def done(shared: Path) -> tuple[dict[str, Any], Path]:
    """The minute, lived once for all workers: its report and its folder."""
    runs, told = shared / "soaked", shared / "soaked.json"
    with alone(shared):
        if not told.exists():
            shutil.rmtree(runs, ignore_errors=True)
            outcome = soak("--seconds", "60", "--seed", "1", "--output", str(runs))
            told.write_text(json.dumps(outcome))
    (folder,) = runs.iterdir()
    return json.loads(told.read_text()), folder


@pytest.fixture
def copy(done: tuple[dict[str, Any], Path], tmp_path: Path) -> Path:
    """Its folder, to do with as one likes."""
    return Path(shutil.copytree(done[1], tmp_path / "copy"))


# -- a minute --------------------------------------------------------------------------------------


def test_a_fleet_keeps_its_promise_under_a_minute_of_faults(done) -> None:
    outcome, _ = done
    assert outcome["kept"] is True
    assert (outcome["lost"], outcome["folded_twice"], outcome["open"]) == (0, 0, 0)
    assert outcome["mismatches"] == []
    assert outcome["digest"] == outcome["sequential_digest"] != ""
    assert outcome["faults"] >= 10
    assert outcome["devices_at_newest"] == outcome["devices"] == 6
    assert outcome["folded"] > 0
    classes = ("folded", "rejected", "superseded", "removed", "unsent")
    assert outcome["created"] == sum(outcome[name] for name in classes)
    assert outcome["versions_checked"] > 1
    assert outcome["blobs_checked"] > 10


def test_its_files_tell_the_same(done) -> None:
    outcome, folder = done
    assert json.loads((folder / "report.json").read_text()) == outcome
    faults = [json.loads(line) for line in (folder / "faults.jsonl").read_text().splitlines()]
    assert sum(not fault["why_not"] for fault in faults) == outcome["faults"]
    assert [fault["number"] for fault in faults] == list(range(len(faults)))
    assert list((folder / "archive" / TASK).rglob("*.seg")), "the log was archived meanwhile"
    ledgers = (folder / "devices").glob("*/ledger.jsonl")
    assert outcome["created"] == sum(len(file.read_text().splitlines()) for file in ledgers)


def test_it_leaves_no_process_behind(done) -> None:
    assert of_folder(done[1]) == []


def test_it_is_judged_again_by_its_files_alone(done, copy: Path) -> None:
    outcome, _ = done
    again = soak("--check", str(copy))
    assert {**again, "machine": None} == {**outcome, "machine": None}


def test_one_line_too_many_in_a_ledger_is_an_update_that_was_lost(done, copy: Path) -> None:
    line = {"boot": 1, "seq": 1, "sha256": "0" * 64, "replaced": None}
    with (copy / "devices" / "device-00" / "ledger.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    outcome = soak("--check", str(copy), code=1)
    assert outcome["lost"] == 1
    assert outcome["kept"] is False
    assert outcome["created"] == done[0]["created"] + 1


def test_a_soak_goes_on_where_it_was(done, copy: Path) -> None:
    before, _ = done
    outcome = soak("--resume", str(copy), "--seconds", "72")
    assert outcome["kept"] is True
    assert (outcome["lost"], outcome["folded_twice"]) == (0, 0)
    assert outcome["faults"] > before["faults"]
    assert outcome["seconds"] >= 72 > before["seconds"] >= 60
    assert outcome["created"] > before["created"]
    assert outcome["version"] > before["version"]
    assert outcome["seed"] == before["seed"]
    numbers = [json.loads(x)["number"] for x in (copy / "faults.jsonl").read_text().splitlines()]
    assert numbers == list(range(len(numbers))), "no fault of the schedule is left out, or repeated"


# -- Ctrl-C ----------------------------------------------------------------------------------------


def of_folder(folder: Path) -> list[str]:
    """What runs with this folder in its command line."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if process.info["pid"] != os.getpid() and str(folder) in line:
            found.append(line)
    return found


@contextmanager
def begun(output: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A quick soak that has struck its first fault, and its folder."""
    with subprocess.Popen(
        command("--quick", "--seed", "3", "--per-minute", "60", "--output", str(output)),
        env=environ(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            until = time.monotonic() + 90
            while not list(output.glob("*/faults.jsonl")):
                assert running.poll() is None, running.communicate()
                assert time.monotonic() < until
                time.sleep(0.05)
            (folder,) = output.iterdir()
            yield running, folder
        finally:
            running.terminate()


def test_ctrl_c_takes_everything_along_and_says_how_to_go_on(tmp_path: Path) -> None:
    with begun(tmp_path) as (running, folder):
        children = psutil.Process(running.pid).children(recursive=True)
        assert len(children) >= 9, "two Redis, a broker, two bridges, two aggregators, the devices"
        assert of_folder(folder)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGINT
    assert f"fedmq soak --resume {folder} goes on" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert of_folder(folder) == []
    assert json.loads((folder / "progress.json").read_text())["next_fault"] >= 1


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="Linux alone can")
def test_a_soak_that_is_killed_leaves_nobody_and_goes_on(tmp_path: Path) -> None:
    with begun(tmp_path) as (running, folder):
        children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
        running.communicate(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert of_folder(folder) == []
    before = json.loads((folder / "progress.json").read_text())["next_fault"]
    outcome = soak("--resume", str(folder), "--quick", "--seconds", "6")
    assert outcome["kept"] is True
    assert outcome["faults"] >= before


def test_what_a_killed_soak_left_is_ended_before_it_goes_on(tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--quick", "--seed", "3", "--per-minute", "60", "--output", str(tmp_path)),
        env=environ() | {"PATH": ""},  # without setpriv its processes live on
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    ) as running:
        until = time.monotonic() + 90
        while not list(tmp_path.glob("*/faults.jsonl")):
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        (folder,) = tmp_path.iterdir()
        children = psutil.Process(running.pid).children(recursive=True)
        running.kill()
    assert of_folder(folder), "nobody has told them to end"
    done = subprocess.run(
        command("--resume", str(folder), "--seconds", "1"),
        env=environ(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "ended what the soak before had left: aggregator-0, aggregator-1, bridge-0" in done.stderr
    )
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
    assert of_folder(folder) == []


# -- bugs that must be found -----------------------------------------------------------------------


def planted(root: Path, file: str, good: str, bad: str) -> Path:
    """A copy of the tree with one bug."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    text = (root / file).read_text()
    assert text.count(good) == 1, "the place where the bug is planted has moved"
    (root / file).write_text(text.replace(good, bad))
    return root


BUGS = {
    "a duplicate is folded like any other": (
        "aggregator/fold.py",
        "        if known:\n",
        "        if known and self.state.tally.folded < 0:\n",
    ),
    "a checkpoint without its momentum": (
        "aggregator/checkpoint.py",
        "        name: vector_to_bytes(living[name])\n",
        '        name: vector_to_bytes(living[name] * (name != "momentum"))\n',
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found_within_half_a_minute(bug: str, tmp_path: Path) -> None:
    tree = planted(tmp_path / "tree", *BUGS[bug])
    where = "import aggregator, fedmq; print(aggregator.__path__[0], fedmq.__path__[0])"
    told = subprocess.run(
        [sys.executable, "-c", where], cwd=tree, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == [str(tree / "aggregator"), str(tree / "fedmq")]
    outcome = soak(
        *("--seconds", "20", "--per-minute", "50", "--seed", "1", "--output", str(tmp_path)),
        code=1,
        cwd=tree,
    )
    assert outcome["kept"] is False
    assert outcome["mismatches"]
    assert outcome["faults"] > 5


# -- every strike ----------------------------------------------------------------------------------


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Fleet]:
    """A fleet of two devices that has published its first model."""
    async with fleet(Plan(seed=5, seconds=1.0, devices=2, profile="wifi-bad"), tmp_path) as running:
        await _begin(running)
        async with connect(running.redis.url) as redis:
            until = time.monotonic() + 60
            while await published_model(redis, TASK) is None:
                assert time.monotonic() < until
        yield running


def may_be_left_out(fault: Fault, here: Fleet) -> Sequence[str]:
    """For which reasons this machine, or this moment, may have no such fault."""
    match fault.kind:
        case "failover":
            return ("the replica does not follow just now",)
        case "clock" if not faketime("valkey", here.redis.clock):
            return ("needs libfaketime, and the Valkey of the wheel",)
        case "disk_full" if sys.platform != "linux":
            return ("RLIMIT_FSIZE of another process is for Linux",)
    return ()


async def test_every_strike_can_be_inflicted_and_is_taken_back(here: Fleet) -> None:
    first = Fault(0, 0.0, "old_card", "device", 0, 0.1, 1)
    assert await strike(here, first) == "no image of this card as yet: one was taken"
    faults = [
        Fault(number, 0.0, kind.name, place, which=0, lasts_s=0.1, dice=number)
        for number, kind in enumerate(KINDS)
        for place in kind.places
    ]
    for fault in faults:
        why = await strike(here, fault)
        assert why in ("", *may_be_left_out(fault, here)), fault
        down = [machine.name for machine in here.machines if not machine.runs]
        assert down == [], fault
    await heal(here)
    async with connect(here.redis.url) as redis:
        assert await redis.config_get("maxmemory") == {"maxmemory": "0"}
        assert (await redis.info("replication"))["role"] == "master"
    assert [node.clock.read_text() for node in here.nodes] == ["+0\n", "+0\n"]
    assert not list(here.folder.glob("devices/*/image"))
    assert (here.folder / "removed.jsonl").exists()
    rogue = (here.folder / "devices" / "rogue" / "ledger.jsonl").read_text().splitlines()
    assert len(rogue) == 6
