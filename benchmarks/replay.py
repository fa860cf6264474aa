"""Replay a log of 10,000-parameter updates, against folding it and against the live service.

    Fold, in memory       aggregator.fold.Fold over entries that are decoded already: the rival
    segments              read from a folder, checked (SHA-256, chain), parsed, folded, every
                          version compared: what `fedmq replay --archive` does
    segments, without     the same with a shadow beside it: what `--without` does
    service               the real aggregator over a real redis-server (appendfsync no), from the
                          first entry until the last is committed; lease, checkpoint and all
    service, archiving    the same with an archive: what sealing costs the fold

All in one process, one contender after the other within each round; the figure is the median of
the rounds, a ratio is of one round.
"""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np

from aggregator.depot import Depot
from aggregator.fold import Fold, origin_state
from aggregator.history import entries, open_history
from aggregator.replay import Replay
from aggregator.segments import Logged, SegmentName, hash_of, pack
from aggregator.service import serve
from aggregator.settings import AggregatorSettings
from aggregator.tasks import create_task, folded_until
from benchmarks.report import Aim, Arguments, Report, generator, progress, run
from lifetimes.together import end
from redis_session.connection import connect
from schemas.codecs import CodecOptions
from schemas.keys import TaskKeys
from schemas.log import Arrived, Entry, EntryId, SpecSet, from_fields, to_fields
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, TaskName, shard_of
from schemas.params import ParamSpec, TensorSpec
from schemas.strategy import StrategyOptions
from schemas.task import PublishOptions, TaskSpec, spec_to_json
from schemas.wire import encode_update
from tests import servers

SIZE: Final = 10_000
DEVICES: Final = 20
TASK: Final = TaskName("bench")
EPOCH: Final = Epoch(1)
SEGMENT: Final = 4 << 20
LEFT_OUT: Final = frozenset({DeviceId("device-3")})


class Bench:
    """A log as entries, as segments in a folder, and as a stream in Redis."""

    def __init__(self, count: int, seed: int, folder: Path, redis_url: str) -> None:
        rng = generator(seed)
        self.spec = TaskSpec(
            ParamSpec((TensorSpec("w", (SIZE,)),)),
            strategy=StrategyOptions(buffer_size=10, flush_after_s=0.0, max_staleness=10),
            codec=CodecOptions("float32"),
            publish=PublishOptions(every=10),
        )
        self.initial = rng.standard_normal(SIZE, dtype=np.float32)
        self.entries = [Entry(EntryId(1, 0), SpecSet(spec_to_json(self.spec)))]
        self.recorded: dict[int, str] = {}
        self.folder, self.redis_url = folder, redis_url
        fold = Fold(origin_state(EPOCH, self.initial))
        fold.apply(self.entries[0])
        for number in range(count):
            self.entries.append(self._update(number, fold, rng))
            fold.apply(self.entries[-1])
            for version, release in fold.take_changes().releases.items():
                self.recorded[version] = release.named.model_digest.hex()[:16]
        assert fold.state.tally.folded == count
        self.stored = [Logged(entry.id, to_fields(entry.body)) for entry in self.entries]
        self._seal()

    def _update(self, number: int, fold: Fold, rng: np.random.Generator) -> Entry:
        base = max(fold.state.bases)
        device = DeviceId(f"device-{number % DEVICES}")
        delta = rng.standard_normal(SIZE, dtype=np.float32) * np.float32(0.01)
        update = ModelUpdate(
            epoch=EPOCH,
            boot=Boot(0xC0FFEE),
            seq=Seq(number // DEVICES + 1),
            base_version=ModelVersion(base),
            base_digest=fold.state.bases[base],
            spec_digest=self.spec.params.short_digest,
            codec=0,
            num_examples=100,
            payload=delta.astype("<f4").tobytes(),
        )
        data = encode_update(update)
        return Entry(EntryId(2 + number, 0), Arrived(device, shard_of(device), data, len(data)))

    def _seal(self) -> None:
        depot, previous, left = Depot(str(self.folder / "archive")), "", list(self.stored)
        depot.put_origin(TASK, EPOCH, self.initial.astype("<f4").tobytes())
        per_segment = max(1, SEGMENT // (4 * SIZE))
        while left:
            piece, left = left[:per_segment], left[per_segment:]
            name, data = SegmentName(piece[0].id, piece[-1].id), pack(TASK, piece, previous)
            depot.write(depot.file(TASK, EPOCH, name), data)
            previous = hash_of(data)

    def alone(self) -> float:
        """The fold over entries in memory."""
        began = perf_counter()
        fold = Fold(origin_state(EPOCH, self.initial))
        for stored in self.stored:
            fold.apply(Entry(stored.id, from_fields(stored.fields)))
            fold.take_changes()
        return perf_counter() - began

    def archived(self, without: frozenset[DeviceId] = frozenset()) -> float:
        """Out of segments."""
        return asyncio.run(self._archived(without))

    async def _archived(self, without: frozenset[DeviceId]) -> float:
        began = perf_counter()
        depot = Depot(str(self.folder / "archive"))
        history = await open_history(TASK, None, depot)
        replay = Replay(history.begin, recorded=self.recorded, without=without)
        async for logged in entries(TASK, history, None, depot):
            replay.apply(logged)
        spent = perf_counter() - began
        assert replay.findings.same == len(self.recorded)
        return spent

    def live(self, archive: str = "") -> float:
        """The real service, from the first entry to the last commit."""
        return asyncio.run(self._live(archive))

    async def _live(self, archive: str) -> float:
        async with connect(self.redis_url) as redis:
            await redis.flushall()
            await create_task(redis, TASK, self.spec, self.initial, epoch=EPOCH)
            keys = TaskKeys(TASK)
            await redis.delete(keys.log)
            for stored in self.stored:
                fields: Any = dict(stored.fields)
                await redis.xadd(keys.log, fields, id=str(stored.id))
            settings = AggregatorSettings(
                redis_url=self.redis_url, log_keep_s=0, archive_url=archive
            )
            began = perf_counter()
            serving = asyncio.create_task(serve(settings))
            assert await folded_until(redis, TASK, self.stored[-1].id, patience_s=300)
            spent = perf_counter() - began
            await end([serving])
        return spent

    def live_archiving(self) -> float:
        """The same, sealing."""
        place = self.folder / "live"
        shutil.rmtree(place, ignore_errors=True)
        return self.live(str(place))


def measure(arguments: Arguments) -> Report:
    """Run all contenders in rounds."""
    count, rounds = (1_000, 3) if arguments.quick else (4_000, 9)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        with servers.redis_server(folder, appendfsync="no") as redis:
            url = f"redis://{servers.HOST}:{redis.port}/0"
            progress(f"making {count:,} updates of {SIZE:,} parameters")
            bench = Bench(count, arguments.seed, folder, url)
            contenders: dict[str, Callable[[], float]] = {
                "Fold, in memory": bench.alone,
                "segments": bench.archived,
                "segments, without": lambda: bench.archived(LEFT_OUT),
                "service": bench.live,
                "service, archiving": bench.live_archiving,
            }
            times = _rounds(contenders, rounds)
    return _report(times, count, rounds)


def _report(times: dict[str, list[float]], count: int, rounds: int) -> Report:
    report = Report("replay", rounds)
    for name, mine in times.items():
        report.figures[f"{name}: updates a second"] = count / median(mine)

    def ratio(one: str, other: str) -> float:
        pairs = zip(times[one], times[other], strict=True)
        return median(a / b for a, b in pairs)

    read = ratio("segments", "Fold, in memory")
    live = ratio("service", "segments")
    shadow = ratio("segments, without", "segments")
    sealing = ratio("service, archiving", "service")
    report.figures |= {
        "segments over Fold in memory: time": read,
        "segments over service: speed": live,
        "without over segments: time": shadow,
        "archiving over not: time of the service": sealing,
    }
    report.aims = [
        Aim("replay over live folding, speed", live, at_least=1.0),
        Aim("without a device over an audit, time", shadow, at_most=2.5),
    ]
    report.notes = [
        f"{count:,} updates of {SIZE:,} float32 parameters, K = 10, published at every 10th version"
    ]
    return report


def _rounds(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Time everyone once a round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}")
        for name, contender in contenders.items():
            spent = contender()
            if number:
                times[name].append(spent)
    return times


if __name__ == "__main__":
    sys.exit(run("replay", "Replay an archived log, against folding it live.", measure))
