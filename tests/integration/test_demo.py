"""`fedmq demo` as its user meets it, small."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

COUNTS = {"created", "folded", "superseded", "open", "stored", "lost"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> "tuple[dict[str, object], Path]":
    runs = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "fedmq.cli", "demo", "--quick", "--json", "--devices", "8"]
    process = subprocess.run(
        [*command, "--seed", "1", "--output", str(runs)],
        env={k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    (folder,) = runs.iterdir()
    return json.loads(process.stdout), folder


def test_it_reaches_its_target_and_every_update_is_accounted_for(done) -> None:
    summary, _ = done
    assert summary["accuracy"] >= summary["target"] == 0.85
    counts = {name: summary[f"updates_{name}"] for name in COUNTS}
    accounted = sum(count for name, count in counts.items() if name != "created")
    assert counts["lost"] == 0
    assert counts["created"] == accounted + sum(summary["updates_rejected"].values())
    assert counts["open"] == counts["stored"] == 0, "the drain ends when all have their Receipts"
    assert summary["payload_bytes_up"] < summary["bytes_up"] < summary["bytes_up_float32"]
    assert summary["links_cut"] > 0


def test_its_files_tell_the_same(done) -> None:
    summary, folder = done
    assert json.loads((folder / "summary.json").read_text()) == summary
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    versions = [event for event in events if event["event"] == "version"]
    assert versions[-1]["version"] == summary["version"]
    assert versions[-1]["accuracy"] == summary["accuracy"]
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    ledgers = (folder / "devices").glob("*.witness.jsonl")
    lines = sum(len(ledger.read_text().splitlines()) for ledger in ledgers)
    assert lines == summary["updates_created"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_stopped_takes_its_servers_along(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "fedmq.cli", "demo", "--devices", "3"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as demo:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("*/devices/*.jsonl")):  # all servers run by then
            assert time.monotonic() < until
            time.sleep(0.05)
        servers = psutil.Process(demo.pid).children(recursive=True)
        assert len(servers) == 4
        demo.send_signal(number)
        _, said = demo.communicate(timeout=60)
    assert demo.returncode == 128 + number
    assert "stopped; what there is lies in" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(servers, timeout=20)
    assert alive == []
