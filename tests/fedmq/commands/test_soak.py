"""`fedmq soak` at its door: what it teaches, what it prints, what it refuses."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from fedmq.simulator.soak.plan import Plan
from fedmq.simulator.soak.processes import Processes
from fedmq.simulator.soak.report import Progress
from fedmq.simulator.soak.schedule import KINDS
from tests.fedmq.simulator.soak.folders import DEVICES, Folder, soaked

LINE = re.compile(r" *(\d+\.\d) s  (\w+) (\w+) (\d+) +(\d\.\d) s  (.+)")


def soak(*arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
    return subprocess.run(
        [sys.executable, "-m", "fedmq.cli", "soak", *arguments],
        env=clean | {"COLUMNS": "120", "NO_COLOR": "1"} | changed,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    """One line on stderr that holds the words, and the exit code."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "soak", soaked())


def test_help_teaches() -> None:
    done = soak("--help")
    assert done.returncode == 0
    told = " ".join(done.stdout.split())  # however it was wrapped
    for words in (
        "Usage:",
        "SIGKILL",
        "Exit code 1 when anything was lost",
        "--resume",
        "--check",
        "--schedule",
        "--real-tcp",
        "Example: fedmq soak --seconds 60 --seed 1",
        "fedmq soak --resume runs/soak-",
    ):
        assert words in told


# -- the schedule ----------------------------------------------------------------------------------


def test_a_schedule_is_printed_and_is_always_the_same(tmp_path: Path) -> None:
    arguments = ("--seed", "1", "--output", str(tmp_path), "--schedule")
    first, again = soak(*arguments, "20"), soak(*arguments, "20")
    assert first.returncode == 0, first.stderr
    assert first.stdout == again.stdout
    longer = soak(*arguments, "40").stdout.splitlines()
    assert longer[:20] == first.stdout.splitlines()
    assert len(longer) == 40
    assert soak("--seed", "2", "--schedule", "20").stdout != first.stdout
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_a_line_of_it_says_when_what_whom_how_long_and_by_what_means() -> None:
    lines = soak("--seed", "1", "--devices", "3", "--schedule", "60").stdout.splitlines()
    found = [LINE.fullmatch(line) for line in lines]
    means = {(kind.name, place): kind.means for kind in KINDS for place in kind.places}
    at_s = 0.0
    for each in found:
        assert each is not None
        when, kind, place, which, lasts, told = each.groups()
        assert float(when) >= at_s
        at_s = float(when)
        assert means[kind, place] == told
        assert int(which) < 3
        assert float(lasts) <= 4.0
    assert 60 / at_s * 60 == pytest.approx(24, rel=0.3)


# -- a folder that is judged -----------------------------------------------------------------------


def test_a_finished_soak_is_judged_again(folder: Folder) -> None:
    done = soak("--check", str(folder.path), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kept"] is True
    assert (told["created"], told["folded"], told["lost"]) == (8, 6, 0)
    assert told["digest"] == told["sequential_digest"]
    assert json.loads((folder.path / "report.json").read_text()) == told
    said = soak("--check", str(folder.path))
    assert said.returncode == 0
    assert "The promise was kept." in said.stdout
    assert str(folder.path) in said.stdout


def test_a_broken_promise_is_exit_code_1(folder: Folder) -> None:
    folder.add_line(DEVICES[0], 7, 9)
    done = soak("--check", str(folder.path))
    assert done.returncode == 1
    assert f"Lost: 1 ({DEVICES[0]}/7/9)" in done.stdout
    assert "The promise was NOT kept" in done.stdout


def test_a_device_that_is_behind_is_exit_code_1(folder: Folder) -> None:
    folder.write_evidence(adopted=dict.fromkeys(DEVICES, 2))
    done = soak("--check", str(folder.path))
    assert done.returncode == 1
    assert f"NOT on {', '.join(DEVICES)}" in done.stdout


def test_an_archive_that_was_altered_is_one_line_that_names_the_file(folder: Folder) -> None:
    segment = folder.segments[0]
    segment.write_bytes(segment.read_bytes()[:-1] + b"?")
    done = soak("--check", str(folder.path))
    refused(done, segment.name, "cut or altered", code=1)


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--codec", "zip"), ("codec", "zip", "topk_int8")),
        (("--codec", "eden"), ("codec", "the checker does not read 'eden'", "sq")),
        (("--profile", "moon"), ("profile", "moon", "nb-iot")),
        (("--broker", "emqx"), ("broker", "emqx", "mosquitto")),
        (("--redis", "kv"), ("redis", "kv", "valkey")),
        (
            ("--real-tcp", "--profile", "lora-dr5"),
            ("profile" if os.geteuid() == 0 else "real_tcp",),
        ),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) and len(value) > 1 else None,
)
def test_a_bad_option_is_one_line_that_names_the_field_and_the_remedy(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused(soak(*arguments, "--output", str(tmp_path)), *words)
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


@pytest.mark.parametrize(
    "flags",
    [
        *(("--devices", "0"), ("--devices", "65"), ("--seed", "-1"), ("--seconds", "0")),
        *(("--hours", "0"), ("--per-minute", "0"), ("--per-minute", "500"), ("--schedule", "-3")),
    ],
    ids=" ".join,
)
def test_a_number_out_of_its_range_is_refused(flags: tuple[str, str], tmp_path: Path) -> None:
    done = soak(*flags, "--output", str(tmp_path))
    assert done.returncode == 2
    assert flags[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems are refused before that")
def test_real_tcp_is_for_root_and_says_what_to_do_without() -> None:
    code = "import os\nfrom fedmq.cli import main\nos.geteuid = lambda: 65534\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, "soak", "--real-tcp"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    refused(done, "real_tcp", "needs root", "leave it out")


@pytest.mark.parametrize("flag", ["--resume", "--check"])
def test_a_folder_that_holds_no_soak_is_refused(flag: str, tmp_path: Path) -> None:
    refused(soak(flag, str(tmp_path)), f"{flag[2:]}: {tmp_path}", "holds no soak")
    refused(soak(flag, str(tmp_path / "none")), "holds no soak")
    (tmp_path / "progress.json").write_text("{}")
    refused(soak(flag, str(tmp_path)), "holds no soak", "plan")


def test_a_soak_that_still_runs_is_not_resumed_beside_itself(tmp_path: Path) -> None:
    progress = Progress(Plan(seed=1, seconds=60.0), 12.0, struck={"kill device": 3})
    (tmp_path / "progress.json").write_bytes(msgspec.json.encode(progress))
    Processes(tmp_path / "processes.json").note("soak", os.getpid())
    refused(soak("--resume", str(tmp_path)), "resume", f"process {os.getpid()}", "end it first")


def test_a_soak_that_is_not_finished_cannot_be_judged(tmp_path: Path) -> None:
    progress = Progress(Plan(seed=1, seconds=60.0), 12.0, struck={"kill device": 3})
    (tmp_path / "progress.json").write_bytes(msgspec.json.encode(progress))
    refused(soak("--check", str(tmp_path)), "check", "holds no finished soak", str(tmp_path))


def test_an_output_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(soak("--output", str(tmp_path / "file")), "output", "cannot be made")
