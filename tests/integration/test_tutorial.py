"""docs/tutorial.md, followed to the letter: its files are written, its commands are run."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import servers
from integration.stack import ROOT, eventually
from integration.test_lab import lab

BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
NAMED = re.compile(r"`(\w+\.(?:py|toml))`")
FLEETS = ("--task plants", "--task nearest")


@dataclass
class Reader:
    """Somebody who reads the page in a folder of their own."""

    folder: Path
    environ: dict[str, str]
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def shell(self, text: str) -> str:
        """Run a block; what it leaves in the background goes on."""
        log = self.folder / "shell.log"
        with log.open("ab") as errors:
            shell = subprocess.Popen(
                ["bash", "-ec", text],
                cwd=self.folder,
                env=self.environ,
                stdout=subprocess.PIPE if "fedmq-agent" not in text else errors,
                stderr=errors,
                start_new_session=True,
            )
        self.started.append(shell)
        output, _ = shell.communicate(timeout=60)
        assert shell.returncode == 0, (text, log.read_text())
        return (output or b"").decode()

    def stop(self) -> None:
        """Ctrl-C in every terminal."""
        for shell in self.started:
            try:
                os.killpg(shell.pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        self.started.clear()

    def versions(self, task: str) -> list[dict[str, object]]:
        found = self.shell(f"fedmq model list {task} --json")
        records: list[dict[str, object]] = json.loads(found)
        return records


@contextmanager
def reader(tmp_path: Path) -> Iterator[Reader]:
    mqtt, redis = servers.free_port(), servers.free_port()
    here = {
        "FEDMQ_MQTT_PORT": str(mqtt),
        "FEDMQ_REDIS_URL": f"redis://127.0.0.1:{redis}/0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    with lab(tmp_path / "lab", mqtt, redis):
        someone = Reader(tmp_path, dict(os.environ) | here)
        try:
            yield someone
        finally:
            someone.stop()


def good(version: dict[str, object]) -> bool:
    """Whether the whole fleet has found it right more often than one plant's habit would be."""
    metrics = version["metrics"]
    assert isinstance(metrics, dict)
    return version["devices"] == 3 and metrics["accuracy"] > 0.8


def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    said = ""
    place = 0
    with reader(tmp_path) as someone:
        for found in BLOCK.finditer(page):
            kind, text = found.groups()
            names = NAMED.findall(page[place : found.start()])
            place = found.end()
            if kind == "sh":
                if "nearest" in text:
                    someone.stop()
                said += someone.shell(text)
                if text.startswith("mkdir"):
                    someone.folder = tmp_path / "plants"
            else:
                (name,) = names[:1]
                (someone.folder / name).write_text(text)
                if f"python {name}`" in page:
                    said += someone.shell(f"python {name}")
            if FLEETS[0] in text:
                eventually(lambda: len(someone.versions("plants")) == 61, "sixty versions")
        eventually(lambda: len(someone.versions("nearest")) > 10, "a fleet with its own trainer")
        assert good(someone.versions("plants")[50])
        assert good(someone.versions("nearest")[8])
    assert re.search(r"plant 0: [89]\d% right\nplant 1: [89]\d% right\nplant 2: [89]\d%", said)
    assert "phase" in said
    assert "finished" in said
