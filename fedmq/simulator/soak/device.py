"""One device of a soak as a process: a real agent, a trainer that costs nothing, a witness.

    python -m fedmq.simulator.soak.device FILE.json

The ledger is written beside the agent, not by it: a line for every update that was created, with
the SHA-256 of its bytes, and how many the disk had seen replaced by then. What a power cut kept
from the ledger is added at the next start.
"""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.agent import Agent
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainer import TrainResult
from lifetimes.loop import run
from schemas.names import Boot, Seq
from schemas.task import TrainOptions

LOOK_S: Final = 0.2
"""How often the device looks whether it shall train no more."""


class DeviceFile(msgspec.Struct, frozen=True):
    """What a device process is told.

    Attributes:
        settings: of its agent.
        ledger: the file of its witness.
        drain: when this file is there, it trains no more.
        pace_s: how long a round of training takes.
    """

    settings: AgentSettings
    ledger: str
    drain: str
    pace_s: float


class Drifting:
    """A trainer whose model goes anywhere: every round is a small random step."""

    def __init__(self, pace_s: float) -> None:
        self._pace_s = pace_s

    def train(
        self,
        tensors: Mapping[str, NDArray[np.float32]],
        options: TrainOptions,
        rng: np.random.Generator,
    ) -> TrainResult:
        """Take one step."""
        time.sleep(self._pace_s)
        step = np.float32(options.learning_rate)
        moved = {
            name: tensor + step * rng.standard_normal(tensor.shape, dtype=np.float32)
            for name, tensor in tensors.items()
        }
        return TrainResult(moved, num_examples=int(rng.integers(1, 100)))


class Ledger:
    """Who was created, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        lines = map(json.loads, path.read_text().splitlines())
        self._known = {(line["boot"], line["seq"]): line.get("superseded") for line in lines}
        self._superseded = 0

    def created(self, boot: Boot, seq: Seq, replaced: Seq | None, message: bytes) -> None:
        """Write one update down."""
        self._superseded += replaced is not None
        self._write(boot, seq, replaced, sha256(message).hexdigest())

    def catch_up(self, spool: Spool) -> None:
        """Add the update that was made in the moment of a power cut, if the ledger missed it."""
        self._superseded = spool.superseded
        last = spool.previous
        if last is None or last in self._known:
            return
        boot, seq = last
        open_now = {(update.boot, update.seq): update.message for update in spool.open_updates()}
        message = open_now.get(last)
        before = (boot, Seq(seq - 1))
        # the line before is of the same life, and so of the same disk, whatever card came since
        counted = self._known.get(before)
        took_its_place = counted is not None and self._superseded == counted + 1
        replaced = before[1] if took_its_place and before not in open_now else None
        self._write(boot, seq, replaced, sha256(message).hexdigest() if message else "")

    def _write(self, boot: Boot, seq: Seq, replaced: Seq | None, digest: str) -> None:
        line = {"boot": boot, "seq": seq, "sha256": digest, "replaced": replaced}
        line["superseded"] = self._superseded
        text = f"{json.dumps(line)}\n".encode()
        while True:  # a full disk is struck on purpose: the device waits for its witness
            try:
                os.write(self._file, text)
                break
            except OSError:
                time.sleep(LOOK_S)
        self._known[boot, seq] = self._superseded


async def live(told: DeviceFile) -> None:
    """Take part until SIGTERM."""
    settings = told.settings
    spool = Spool(Path(settings.state_dir) / settings.spool_name, disk_mb=settings.disk_mb)
    ledger = Ledger(Path(told.ledger))
    ledger.catch_up(spool)
    agent = Agent(settings, Drifting(told.pace_s), spool, on_created=ledger.created)
    running = asyncio.ensure_future(agent.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    draining = asyncio.create_task(_drain_when_told(agent, Path(told.drain)))
    try:
        await running
    except asyncio.CancelledError:
        return
    finally:
        draining.cancel()
        spool.close()


async def _drain_when_told(agent: Agent, file: Path) -> None:
    while not await asyncio.to_thread(file.exists):  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(LOOK_S)
    agent.drain()


def main() -> None:
    """Read the file that the command line names, and live."""
    told = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=DeviceFile)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    run(live(told))


if __name__ == "__main__":
    main()
