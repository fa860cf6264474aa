"""A process that is to be killed, frozen and started again, and its log file."""

import asyncio
import os
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
        deaths: how often it has ended without being told to.
    """

    name: str
    command: Callable[[], Sequence[str]]
    folder: Path
    environ: Mapping[str, str] = field(default_factory=dict)
    deaths: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _wanted: bool = False

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.runs:
            return
        environ = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ | dict(self.environ),
                start_new_session=True,  # Ctrl-C is for the soak, which stops everything in order
            )
        self._wanted = True

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
        self._wanted = False
        self.signal(signal.SIGKILL)
        await self._gone(STOP_S)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not obeyed."""
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
        self.deaths += 1
        self.start()
        return True

    def limit_files(self, size: int | None) -> bool:
        """Let its files grow no further than this, in bytes; None lifts that. Linux alone can."""
        if sys.platform != "linux" or not self.runs:
            return False
        import resource  # noqa: PLC0415 - there is none on Windows

        soft = resource.RLIM_INFINITY if size is None else size
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
            return True
        return False
