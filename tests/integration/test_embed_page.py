"""docs/how-to/embed.md: every program on the page runs as it stands, on a broker of the test's."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiomqtt
import pytest
import servers
from integration.stack import ROOT, run_fedmq
from integration.test_lab import lab

PAGE = (ROOT / "docs" / "how-to" / "embed.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
MINE = """
from edge_agent.trainer import TrainResult

class PumpTrainer:
    def train(self, tensors, options, rng):
        return TrainResult({"w": tensors["w"] + 1}, num_examples=5)
"""
TASK = "[[params.tensors]]\nname = 'w'\nshape = [4]\n[strategy]\nbuffer_size = 1\n"


@dataclass
class Place:
    folder: Path
    port: int

    def run(self, program: str) -> "subprocess.Popen[str]":
        """One of the page's programs, with its broker and its folder put in."""
        text = program.replace('mqtt_host="broker"', f"mqtt_port={self.port}")
        text = text.replace('Client("broker")', f'Client("127.0.0.1", {self.port})')
        text = text.replace("/var/lib/fedmq", str(self.folder / "state"))
        path = self.folder / "program.py"
        path.write_text(text)
        (self.folder / "mine.py").write_text(MINE)
        return subprocess.Popen(
            [sys.executable, str(path)],
            cwd=self.folder,
            env={"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    mqtt, redis = servers.free_port(), servers.free_port()
    with lab(tmp_path / "lab", mqtt, redis):
        (tmp_path / "task.toml").write_text(TASK)
        where = ("--redis-url", f"redis://127.0.0.1:{redis}/0")
        run_fedmq("task", "create", "pumps", "--spec", str(tmp_path / "task.toml"), *where)
        yield Place(tmp_path, mqtt)


def output(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    return said


def test_the_page_has_four_programs() -> None:
    assert len(PROGRAMS) == 4


def test_an_agent_lives_beside_a_program_that_serves_every_model(place: Place) -> None:
    said = output(place.run(PROGRAMS[0]))
    assert re.search(r"serving version [3-9] \['w'\]\n$", said)


async def test_an_agent_lives_on_the_programs_own_connection(place: Place) -> None:
    process = place.run(PROGRAMS[1])
    async with aiomqtt.Client(servers.HOST, place.port) as client:
        await client.subscribe("fedmq/v1/pumps/up/+/pump-7")
        await anext(aiter(client.messages))  # it takes part
        await client.publish("plant/alarms", b"hot", qos=1)
    assert output(process) == "mine: plant/alarms b'hot'\n"


def test_a_program_that_wakes_once_in_a_while_exchanges(place: Place) -> None:
    said = output(place.run(PROGRAMS[2])).split()
    assert said[0] == "True"
    assert int(said[1]) >= 0
    assert said[2:4] == ["1", "0"], "one update, and its Receipt"


def test_the_fold_needs_no_server(tmp_path: Path) -> None:
    said = output(Place(tmp_path, 0).run(PROGRAMS[3]))
    assert said.startswith("1 [2.5 2.5 2.5 2.5]\n")
    assert said.count("Answer(") == 2
