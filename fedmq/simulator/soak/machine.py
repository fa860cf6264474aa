"""A process that is to be killed, frozen and started again, and its log file."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

STOP_S: Final = 5.0
"""How long SIGTERM may take before SIGKILL."""


@dataclass
class Machine:
    """One process.

    Attributes:
        name: for people, and of the log file.
        command: made anew at every start.
        folder: where the log file is.
        environ: beside this process' own environment, without its FEDMQ_*.
        started: is told its name and number whenever it has started.
        deaths: how often it has ended without being told to.
    """

    name: str
    command: Callable[[], Sequence[str]]
    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    started: Callable[[str, int], None] = lambda _name, _pid: None
    deaths: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _wanted: bool = False

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.runs:
            return
        self._count_death()
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_dies_with_us(), *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ | dict(self.environ),
                start_new_session=True,  # Ctrl-C is for the soak, which stops everything in order
            )
        self._wanted = True
        self.started(self.name, self.pid)

    @property
    def runs(self) -> bool:
        """Whether the process is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its number; it must have been started."""
        if self._process is None:
            msg = f"{self.name} was never started"
            raise RuntimeError(msg)
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self.runs:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL: nothing is flushed, nobody is told."""
        self._count_death()
        self._wanted = False
        self.signal(signal.SIGKILL)
        await self._gone(STOP_S)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not obeyed."""
        self._count_death()
        self._wanted = False
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        if not await self._gone(STOP_S):
            await self.kill()

    async def _gone(self, patience_s: float) -> bool:
        waited = 0.0
        while self.runs and waited < patience_s:
            await asyncio.sleep(0.02)
            waited += 0.02
        return not self.runs

    def revive(self) -> bool:
        """Start it again if it has ended by itself; tell whether it had."""
        if not self._wanted or self.runs:
            return False
        self.start()
        return True

    def pardon(self) -> None:
        """Do not count it as a death if it has ended."""
        self._wanted = self.runs

    def _count_death(self) -> None:
        """Whoever is to run and does not has ended by himself."""
        self.deaths += self._wanted and not self.runs

    def limit_files(self, size: int | None) -> bool:
        """Let its files grow no further than this, in bytes; None lifts that. Linux alone can."""
        if sys.platform == "linux" and self.runs:
            import resource  # noqa: PLC0415 - there is none on Windows

            soft = resource.RLIM_INFINITY if size is None else size
            with suppress(ProcessLookupError, PermissionError):
                resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
                return True
        return False


def _dies_with_us() -> Sequence[str]:
    """What makes a process end when this one is killed: setpriv becomes it. Linux alone can."""
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    return [] if setpriv is None else [setpriv, "--pdeathsig", "KILL"]
