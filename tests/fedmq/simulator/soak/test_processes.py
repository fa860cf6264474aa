import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.simulator.soak.processes import Processes, end_left, started

SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(SLEEPS) as running:
        yield running
        running.kill()


def test_a_start_is_told_from_another_and_from_none(child: subprocess.Popen[bytes]) -> None:
    first = started(child.pid)
    assert first == started(child.pid) != ""
    with subprocess.Popen(SLEEPS) as other:
        other.kill()
        other.wait()
        assert started(other.pid) == ""


def test_what_a_killed_soak_left_is_ended(child: subprocess.Popen[bytes], tmp_path: Path) -> None:
    file = tmp_path / "processes.json"
    Processes(file).note("bridge-0", child.pid)
    assert end_left(file) == ["bridge-0"]
    assert child.wait(10) == -9
    assert end_left(file) == []


def test_a_number_that_is_anothers_by_now_is_left_alone(
    child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    file = tmp_path / "processes.json"
    Processes(file).note("bridge-0", child.pid)
    ((_, at),) = json.loads(file.read_text()).values()
    with subprocess.Popen(SLEEPS) as gone:
        gone.kill()
    those = {"bridge-0": [child.pid, at + "1"], "redis-a": [child.pid, ""], "x": [gone.pid, ""]}
    file.write_text(json.dumps(those))
    assert end_left(file) == []
    assert child.poll() is None


def test_of_a_process_that_was_started_again_only_the_newest_is_known(
    child: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    file = tmp_path / "processes.json"
    processes = Processes(file)
    with subprocess.Popen(SLEEPS) as other:
        processes.note("bridge-0", other.pid)
        processes.note("device-00", child.pid)
        other.kill()
        other.wait()
        processes.note("bridge-0", child.pid)
    assert {name: pid for name, (pid, _) in json.loads(file.read_text()).items()} == {
        "bridge-0": child.pid,
        "device-00": child.pid,
    }


@pytest.mark.parametrize("content", [None, "", "{"])
def test_without_a_file_that_can_be_read_nothing_is_ended(
    content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "processes.json"
    if content is not None:
        file.write_text(content)
    assert end_left(file) == []
