"""What systemd and NetworkManager tell: external power, and whether the link is metered."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from edge_agent.conditions.readings import Readings

Run: TypeAlias = Callable[[Sequence[str]], tuple[int, str] | None]
"""A command -> (exit code, output); None when it is not there or does not answer."""

_METERED: Final = (
    *("busctl", "get-property", "org.freedesktop.NetworkManager"),
    *("/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager", "Metered"),
)
_UNMETERED: Final = {"u 1": False, "u 2": True, "u 3": False, "u 4": True}
"""NMMetered: yes, no, and the guesses of both; 0 is unknown."""


def run(command: Sequence[str]) -> tuple[int, str] | None:
    """Run a program for at most 5 seconds."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.returncode, done.stdout.strip()


def systemd(run: Run = run) -> Readings:
    """Ask `systemd-ac-power` (0: on external power, 1: not) and NetworkManager."""
    power, metered = run(("systemd-ac-power",)), run(_METERED)
    charging = None if power is None else {0: True, 1: False}.get(power[0])
    unmetered = None if metered is None or metered[0] else _UNMETERED.get(metered[1])
    return Readings(charging=charging, unmetered=unmetered)
