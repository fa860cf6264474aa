"""Fold 100 updates of 1,000,000 parameters from their wire bytes, against plain numpy.

The rival is the fastest plain thing: `np.multiply(x, w, out=tmp); np.add(acc, tmp, out=acc)` over
arrays that are decoded already. The contenders begin with a message's bytes; all
updates of a round are one buffer (K of FedBuff) but where K is named:

    admit        decode_update, admission with the finite check, FedBuff: what the aggregator does
    unchecked    the same without admission: decode_update, codec, FedBuff
    fresh        as `admit`, but of staleness 0: such an update weighs exactly 1
    topk 1 %     as `admit`, of topk_int8 at density 0.01
    Fold         aggregator.fold.Fold with everything: windows, tally, and a publication (SHA-256
                 of 4 MB twice, and a copy) at every 10th version or at every one; K = 10

All in one process, one contender after the other within each round, so that the ratio of a round is
of one and the same minute; the figure is the median of the rounds.
"""

import sys
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np

from aggregator.admission import Standing, admit
from aggregator.fold import Fold, origin_state
from aggregator.strategies import Contribution, State, strategy_for
from benchmarks.report import Aim, Arguments, Report, generator, progress, run
from schemas.codecs import Ask, CodecOptions, codec_by_id, codec_by_name
from schemas.log import Arrived, Entry, EntryId, SpecSet
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, shard_of
from schemas.params import Params, ParamSpec, TensorSpec, base_digest, model_digest
from schemas.strategy import StrategyOptions
from schemas.task import PublishOptions, TaskSpec, spec_to_json
from schemas.wire import decode_update, encode_update

SIZE: Final = 1_000_000
DENSITY: Final = 0.01
STALE: Final = 2
K: Final = 10
DEVICES: Final = 8
EPOCH: Final = Epoch(1)


class Bench:
    """One task's updates as messages, and the contenders that fold them."""

    def __init__(self, codec: str, count: int, seed: int) -> None:
        rng = generator(seed)
        self.spec = TaskSpec(
            ParamSpec((TensorSpec("w", (SIZE,)),)),
            strategy=StrategyOptions(buffer_size=count, flush_after_s=0.0),
            codec=CodecOptions(name=codec, density=DENSITY),
        )
        self.initial = rng.standard_normal(SIZE, dtype=np.float32)
        self.base = base_digest(model_digest(self.spec.params.digest, self.initial))
        self.messages = [self._message(seq, rng) for seq in range(1, count + 1)]

    def _message(self, seq: int, rng: np.random.Generator) -> Arrived:
        codec = codec_by_name(self.spec.codec.name)
        delta = rng.standard_normal(SIZE, dtype=np.float32) * np.float32(0.01)
        update = ModelUpdate(
            epoch=EPOCH,
            boot=Boot(0xC0FFEE),
            seq=Seq(-(-seq // DEVICES)),
            base_version=ModelVersion(0),
            base_digest=self.base,
            spec_digest=self.spec.params.short_digest,
            codec=codec.codec_id,
            num_examples=100,
            payload=codec.encode(delta, Ask(self.spec.codec), rng),
        )
        device = DeviceId(f"device-{seq % DEVICES}")
        data = encode_update(update)
        return Arrived(device, shard_of(device), data, len(data))

    def decoded(self) -> list[Params]:
        """The vectors themselves, as the rival gets them."""
        return [
            codec_by_id(0).decode(memoryview(decode_update(m.data).payload), SIZE).values
            for m in self.messages
        ]

    def admitted(self, staleness: int) -> Callable[[], None]:
        """decode_update, admission, FedBuff."""
        strategy = strategy_for(self.spec.strategy)
        standing = Standing(
            spec=self.spec,
            codec_ids=frozenset({codec_by_name(self.spec.codec.name).codec_id}),
            size=SIZE,
            spec_digest=self.spec.params.short_digest,
            epoch=EPOCH,
            version=staleness,
            bases={0: self.base},
        )
        state = strategy.init(self.initial)

        def fold() -> None:
            after: State = state
            for message in self.messages:
                verdict = admit(message, decode_update(message.data), standing)
                assert isinstance(verdict, Contribution)
                after, _ = strategy.fold(after, verdict, {})

        return fold

    def unchecked(self, staleness: int) -> Callable[[], None]:
        """decode_update, codec, FedBuff: nothing is refused."""
        strategy = strategy_for(self.spec.strategy)
        state = strategy.init(self.initial)

        def fold() -> None:
            after: State = state
            for message in self.messages:
                update = decode_update(message.data)
                delta = codec_by_id(update.codec).decode(memoryview(update.payload), SIZE)
                contribution = Contribution(0, staleness, update.num_examples, delta)
                after, _ = strategy.fold(after, contribution, {})

        return fold

    def folded(self, publish_every: int) -> Callable[[], None]:
        """The real Fold, from the task's origin each time."""
        spec = TaskSpec(
            self.spec.params,
            strategy=StrategyOptions(buffer_size=K, flush_after_s=0.0),
            codec=self.spec.codec,
            publish=PublishOptions(every=publish_every),
        )
        begin = Entry(EntryId(1), SpecSet(spec_to_json(spec)))
        entries = [Entry(EntryId(2, i), m) for i, m in enumerate(self.messages)]

        def fold() -> None:
            machine = Fold(origin_state(EPOCH, self.initial))
            machine.apply(begin)
            machine.apply_all(entries)
            assert machine.state.tally.folded == len(entries)

        return fold


def plain(vectors: Sequence[Params], weight: float) -> Callable[[], None]:
    """The rival: a weighted sum in place over decoded arrays."""
    total = np.zeros(SIZE, dtype=np.float32)
    product = np.empty(SIZE, dtype=np.float32)
    scale = np.float32(weight)

    def fold() -> None:
        for vector in vectors:
            np.multiply(vector, scale, out=product)
            np.add(total, product, out=total)

    return fold


def measure(arguments: Arguments) -> Report:
    """Run all contenders in rounds."""
    count, rounds = (20, 7) if arguments.quick else (100, 21)
    progress(f"encoding {2 * count} updates of {SIZE:,} parameters")
    dense = Bench("float32", count, arguments.seed)
    sparse = Bench("topk_int8", count, arguments.seed)
    contenders = {
        "numpy": plain(dense.decoded(), 3**-0.5),
        "admit": dense.admitted(STALE),
        "unchecked": dense.unchecked(STALE),
        "fresh": dense.admitted(0),
        "topk 1 %": sparse.admitted(STALE),
        "Fold, publish.every 10": dense.folded(10),
        "Fold, publish.every 1": dense.folded(1),
    }
    times = _rounds(contenders, rounds)
    report = Report("fold", rounds)
    ratios = {}
    for name, mine in times.items():
        report.figures[f"{name}: us an update"] = median(mine) / count * 1e6
        ratios[name] = median(m / rival for m, rival in zip(mine, times["numpy"], strict=True))
    report.figures |= {f"{name}: ratio": r for name, r in ratios.items() if name != "numpy"}
    report.aims = [
        Aim("dense, with the check, over numpy", ratios["admit"], at_most=1.0),
        Aim("dense, without the check, over numpy", ratios["unchecked"], at_most=0.8),
        Aim("topk 1 %, with the check, over dense numpy", ratios["topk 1 %"], at_most=0.05),
    ]
    report.notes = [f"{count} updates a round, staleness {STALE} unless fresh"]
    return report


def _rounds(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Time everyone once a round, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        progress(f"round {number} of {rounds}")
        for name, fold in contenders.items():
            began = perf_counter()
            fold()
            if number:
                times[name].append(perf_counter() - began)
    return times


if __name__ == "__main__":
    sys.exit(run("fold", "Fold updates from wire bytes, against plain numpy.", measure))
