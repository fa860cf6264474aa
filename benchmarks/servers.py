"""What a benchmark runs beside the servers that the tests use too: `fedmq` commands, measured."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def fedmq(folder: Path, *arguments: str) -> Iterator[int]:
    """One `fedmq` process, its output in `folder`, until the block ends; gives its process id."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
    command = [sys.executable, "-m", "fedmq.cli", *arguments]
    with (folder / f"{arguments[0]}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
        try:
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def cpu_seconds(pid: int) -> float:
    """The CPU time a process has used; NaN where /proc does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
