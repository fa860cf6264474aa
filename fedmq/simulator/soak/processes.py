"""The processes of a soak, in a file: what a soak that was killed has left is found and ended.

A process is known by its number and by when it started; a number alone may be another's by now.
"""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

SOAK: Final = "soak"
"""The name of the soak itself."""

PATIENCE_S: Final = 10.0
"""How long a process that was killed may take to be gone."""

_PROC: Final = Path("/proc")
_STARTED: Final = 19
"""Where /proc/PID/stat has the start time, counted from behind the name."""


def started(pid: int) -> str:
    """When a process started, as this system tells it; empty when there is none, or a zombie."""
    if _PROC.exists():
        with suppress(OSError):
            boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
            # a name may hold spaces and brackets
            fields = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
            return "" if fields[0] in "ZX" else f"{boot} {fields[_STARTED]}"
        return ""
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


class Processes:
    """Who runs for a soak, kept in a file that is always whole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._those: dict[str, tuple[int, str]] = {}

    def note(self, name: str, pid: int) -> None:
        """Write a process down that has just started."""
        self._those[name] = (pid, started(pid))
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(self._those))
        part.replace(self._file)


def still_there(file: Path) -> dict[str, int]:
    """Which of those in the file still are the same process: their numbers by name."""
    with suppress(OSError, ValueError):
        those = json.loads(file.read_text())
        return {name: pid for name, (pid, at) in those.items() if at and started(pid) == at}
    return {}


def end_left(file: Path) -> list[str]:
    """SIGKILL all that are still there. Returns their names."""
    left = still_there(file)
    for pid in left.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + PATIENCE_S
    while still_there(file) and time.monotonic() < until:
        time.sleep(0.02)
    return sorted(left)
