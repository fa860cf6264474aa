"""What `fedmq[edge]` costs a device: megabytes on disk, and memory once it is imported.

A fresh virtual environment gets the project's own tree with the extra [edge] and nothing else; its
size is what `du -sm` says (blocks on disk, in MiB, rounded up). Memory is the peak resident set of
a process that imports the agent and ends, beside a Python that imports nothing: medians.
"""

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.report import Aim, Arguments, Report, progress, run

ROOT: Final = Path(__file__).resolve().parents[1]
MIB: Final = 1 << 20

_PEAK: Final = "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])"
"""In KiB, on Linux. Not ru_maxrss: there a child begins with the peak of its parent."""
_AGENT: Final = f"import edge_agent.agent; {_PEAK}"
_ENTRY: Final = f"import edge_agent.__main__; {_PEAK}"


def measure(arguments: Arguments) -> Report:
    """Install, weigh, import."""
    repeats = 5 if arguments.quick else 15
    report = Report("install", repeats)
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as name:
        venv = Path(name) / "venv"
        progress("making an environment")
        _run([sys.executable, "-m", "venv", str(venv)])
        python = str(venv / "bin" / "python")
        empty = disk_mib(venv)
        progress("installing fedmq[edge]")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, f"{ROOT}[edge]"])
        full = disk_mib(venv)
        packages = _run([python, "-m", "pip", "list", "--format=freeze"]).split()
        peaks = _peaks(python, Path(name), repeats)
    report.figures = {
        "empty environment, MiB": empty,
        "environment with fedmq[edge], MiB": full,
        "packages beside pip and setuptools": len(packages) - 2,
        "bare python, peak MiB": peaks["pass"],
        "import edge_agent.agent, peak MiB": peaks[_AGENT],
        "import edge_agent.__main__, peak MiB": peaks[_ENTRY],
    }
    report.aims = [
        Aim("environment with fedmq[edge], MiB", full, at_most=110),
        Aim("import edge_agent.agent, peak MiB", peaks[_AGENT], at_most=42),
    ]
    report.notes = [" ".join(sorted(packages)), "an empty environment holds pip and setuptools"]
    return report


def disk_mib(folder: Path) -> int:
    """What `du -sm` says: blocks on disk, each inode once, in MiB, rounded up."""
    seen: dict[tuple[int, int], int] = {}
    for path in (folder, *folder.rglob("*")):
        stat = path.lstat()
        seen[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return math.ceil(sum(seen.values()) / MIB)


def _peaks(python: str, elsewhere: Path, repeats: int) -> dict[str, float]:
    """Peak resident MiB of each program, run in turn, after one run that writes the .pyc files."""
    peaks: dict[str, list[float]] = {"pass": [], _AGENT: [], _ENTRY: []}
    for number in range(repeats + 1):
        progress(f"imports {number} of {repeats}")
        for program, found in peaks.items():
            code = _PEAK if program == "pass" else program
            peak = int(_run([python, "-c", code], elsewhere)) / 1024
            if number:
                found.append(peak)
    return {program: median(found) for program, found in peaks.items()}


def _run(command: list[str], folder: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        progress(done.stdout + done.stderr)
        done.check_returncode()
    return done.stdout


if __name__ == "__main__":
    sys.exit(run("install", "The size of fedmq[edge] on disk and in memory.", measure))
