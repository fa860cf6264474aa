"""What a fleet learns per byte, up and down, beside what others put on the wire.

    codecs      bytes of one update by codec and budget, and how noisy an unbiased one is
    small       digits, 9,610 parameters: accuracy, bytes to 95 %, every codec and budget
    cnn         digits, a convolutional network of 13,706
    turbofan    100 engines, remaining cycles from windows of 30: error in cycles
    big         digits, 99,530 parameters
    faults      20 % and 50 % of the updates lost, doubled, late or very stale
    both        every codec at every budget with the lattice down: bytes of both ways to 95 %
    down        the lattice: bytes a version and over gaps, accuracy, end to end under loss
    wire        whole MQTT packets of an update and its receipt
    others      what other systems would have sent
    timing      encoding, decoding and folding

`learning` is small, cnn, turbofan, big, faults, both and down. All runs of a seed share split,
speeds, batches and losses, so differences are paired; bounds are one-sided, 95 %, Student's t. With
--quick there are few seeds of fewer uploads, and only what holds at that size is judged.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

import numpy as np

from benchmarks.learning.contenders import (
    BUDGETS,
    FAULTED,
    FAULTY,
    FILLING,
    FLOAT32,
    filling,
    ways_of,
)
from benchmarks.learning.downlink import GAPS, Walked
from benchmarks.learning.fleet import EVERY, LAST, Outcome, Way
from benchmarks.learning.fleet import run as lived
from benchmarks.learning.others import sizes
from benchmarks.learning.packets import SHORTEST, USUAL, offer, packets
from benchmarks.learning.study import Job, Model, Paired, outcomes, paired, setting_of, world_of
from benchmarks.learning.timeline import Faults
from benchmarks.learning.timing import timed
from benchmarks.report import Aim, Arguments, Report, progress, run
from schemas.codecs import Ask, CodecOptions, codec_by_name
from schemas.delta import to_dense
from schemas.params import Params

SEEDS: Final = 15
FAULT_SEEDS: Final = 3
QUICK_SEEDS: Final = 3

TARGETS: Final[dict[Model, float]] = {"small": 95.0, "cnn": 95.0, "big": 95.0, "turbofan": 22.0}
"""Per cent of the held-out digits; cycles of root mean square error."""

COMPARED_DOWN: Final = (Way("sq", 103), Way("eden", 103))
"""What goes up where the way down is looked at."""

LEARNING: Final[tuple[str, ...]] = ("small", "cnn", "turbofan", "big", "faults", "both", "down")
EVERYTHING: Final[tuple[str, ...]] = ("codecs", "wire", "others", "timing", *LEARNING)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is run."""

    seeds: tuple[int, ...]
    uploads: int
    quick: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Parse --part, and leave the rest to what all benchmarks share."""
    parser = argparse.ArgumentParser(add_help=False)
    choices = (*EVERYTHING, "learning", "all")
    parser.add_argument("--part", choices=choices, default="all")
    said, rest = parser.parse_known_args(argv)
    parts = {"all": EVERYTHING, "learning": LEARNING}.get(said.part, (said.part,))
    about = f"Learning per byte. --part: {', '.join(choices)} [all]"
    return run("bytes", about, lambda arguments: measured(arguments, parts), rest)


def measure(arguments: Arguments) -> Report:
    """Run every part."""
    return measured(arguments, EVERYTHING)


def measured(arguments: Arguments, parts: Iterable[str]) -> Report:
    """Run some parts, in this order."""
    seeds = QUICK_SEEDS if arguments.quick else SEEDS
    first = arguments.seed
    extent = Extent(tuple(range(first, first + seeds)), 0, arguments.quick)
    report = Report("bytes", seeds)
    for part in parts:
        progress(f"bytes: {part}")
        PARTS[part](report, extent)
    report.notes.append(
        f"paired by seed; accuracy is the mean of the last {LAST} of the evaluations made every "
        f"{EVERY} uploads; to a target: until the mean of three evaluations is there"
    )
    return report


# -- learning ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Studied:
    """All runs of a model, by way and then by seed."""

    model: Model
    runs: dict[Way, list[Outcome]]

    @property
    def below(self) -> bool:
        """Less is better."""
        return self.model == "turbofan"

    def lost(self, way: Way) -> Paired:
        """How much worse than float32: points of accuracy, or cycles."""
        mine = [o.reached for o in self.runs[way]]
        best = [o.reached for o in self.runs[FLOAT32]]
        return paired(mine, best) if self.below else paired(best, mine)

    def to_target(self, way: Way) -> float:
        """Median payload kB of all devices until the target; infinite when most never met it."""
        target = TARGETS[self.model]
        return median(o.bytes_to(target, below=self.below) / 1e3 for o in self.runs[way])

    def over(self, way: Way, rival: Way, *, both: bool = False) -> float:
        """Mean over seeds of log2 (bytes to target / the rival's), bounded by +-3; below 0: fewer.

        A run that never met the target counts as one that met it just after its end.
        """
        ratios = [
            np.clip(np.log2(self._spent(mine, both=both) / self._spent(theirs, both=both)), -3, 3)
            for mine, theirs in zip(self.runs[way], self.runs[rival], strict=True)
        ]
        return float(np.mean(ratios))

    def _spent(self, run: Outcome, *, both: bool) -> float:
        most = float(sum(run.up)) + (run.down[-1] if both else 0)
        return min(run.bytes_to(TARGETS[self.model], below=self.below, both=both), most)

    def ratio(self, way: Way) -> float:
        """How many times fewer bytes an update than float32."""
        return self.runs[FLOAT32][0].update_bytes / fmean(o.update_bytes for o in self.runs[way])


def studied(model: Model, ways: Sequence[Way], extent: Extent, *, lattice: bool = False) -> Studied:
    """Make all runs of a model."""
    jobs = {
        way: [
            Job(model, way, seed, lattice=lattice, uploads=extent.uploads) for seed in extent.seeds
        ]
        for way in ways
    }
    found = outcomes([job for seed in zip(*jobs.values(), strict=True) for job in seed])
    return Studied(model, {way: [found[job] for job in mine] for way, mine in jobs.items()})


def _learn(model: Model) -> Callable[[Report, Extent], None]:
    def part(report: Report, extent: Extent) -> None:
        study = studied(model, ways_of(model), extent)
        unit = "cycles" if study.below else "points"
        for way, mine in study.runs.items():
            name = f"{model}, {way}"
            lost = study.lost(way)
            report.figures |= {
                f"{name}: bytes an update": fmean(o.update_bytes for o in mine),
                f"{name}: {'error' if study.below else 'accuracy'}": fmean(o.reached for o in mine),
                f"{name}: {unit} behind float32": lost.mean,
                f"{name}: {unit} behind float32, upper 95 %": lost.upper,
                f"{name}: kB up to target": study.to_target(way),
            }
        staleness = fmean(o.staleness for o in study.runs[FLOAT32])
        report.figures[f"{model}: mean staleness"] = staleness
        _judge(report, study, extent)

    return part


def _judge(report: Report, study: Studied, extent: Extent) -> None:
    """The promises of a model, at full size."""
    if extent.quick:
        return
    bounds = {
        "small": ((103, 370, 0.3), (39, 980, 1.0)),
        "big": ((210, 1_890, 0.6),),  # 398,120 / 210 = 1,896
    }
    for budget, smaller, points in bounds.get(study.model, ()):
        way = Way("sq", budget)
        name = f"{study.model}, {way}"
        report.aims += [
            Aim(f"{name}: times smaller than float32", study.ratio(way), at_least=smaller),
            Aim(f"{name}: points behind, upper 95 %", study.lost(way).upper, at_most=points),
        ]
    if study.model in bounds:
        for budget in BUDGETS:
            way = Way("sq", budget)
            report.aims += [
                Aim(
                    f"{study.model}, {way} over {rival}: log2 of bytes to target",
                    study.over(way, Way(rival, budget)),
                    at_most=0.0,
                )
                for rival in FILLING[1:]
                if way in study.runs
            ]


def _faults(report: Report, extent: Extent) -> None:
    seeds = extent.seeds[:FAULT_SEEDS]
    cases = [Faults()] + [Faults(kind, share) for kind in FAULTY for share in (0.2, 0.5)]
    ways = FAULTED[:1] + FAULTED[4:5] if extent.quick else FAULTED
    jobs = {
        (way, case): [Job("small", way, seed, case) for seed in seeds]
        for way in ways
        for case in cases
    }
    found = outcomes([job for mine in jobs.values() for job in mine])
    for (way, case), mine in jobs.items():
        what = f"{case.share:.0%} {case.kind}" if case.share else "as sent"
        reached = fmean(found[job].reached for job in mine)
        report.figures[f"faults, {way}, {what}: accuracy"] = reached


# -- down ----------------------------------------------------------------------------------


def _both(report: Report, extent: Extent) -> None:
    """What noise costs on the way back: every codec that fills a budget, on the lattice."""
    study = studied("small", filling("small"), extent, lattice=True)
    for way, mine in study.runs.items():
        name = f"both, {way}"
        spent = median(o.bytes_to(TARGETS["small"], both=True) / 1e3 for o in mine)
        report.figures |= {
            f"{name}: accuracy": fmean(o.reached for o in mine),
            f"{name}: kB up to target": study.to_target(way),
            f"{name}: kB up and down to target": spent,
            f"{name}: bytes down an upload": fmean(o.down[-1] / len(o.up) for o in mine),
        }
    if extent.quick:
        return
    report.aims += [
        Aim(
            f"both, sq {budget} B over {rival}: log2 of bytes up and down to target",
            study.over(Way("sq", budget), Way(rival, budget), both=True),
            at_most=0.0,
        )
        for budget in BUDGETS
        for rival in FILLING[1:]
    ]


def _down(report: Report, extent: Extent) -> None:
    """The lattice, beside float32 both ways under the same losses."""
    plain, up = "float32 both ways", "up, lattice down"
    ways = (FLOAT32, *COMPARED_DOWN)
    cases = {"": Faults(), ", 20 % lost": Faults("lost", 0.2)}
    jobs = {}
    for title, faults in cases.items():
        jobs[plain, title] = [Job("small", FLOAT32, s, faults) for s in extent.seeds]
        for way in ways if not title else COMPARED_DOWN:
            jobs[f"{way} {up}", title] = [
                Job("small", way, s, faults, lattice=True) for s in extent.seeds
            ]
    found = outcomes([job for mine in jobs.values() for job in mine])
    for (who, title), mine in jobs.items():
        name = f"down, {who}{title}"
        runs = [found[job] for job in mine]
        best = [found[job].reached for job in jobs[plain, title]]
        lost = paired(best, [o.reached for o in runs])
        both = median(o.bytes_to(TARGETS["small"], both=True) / 1e3 for o in runs)
        report.figures |= {
            f"{name}: accuracy": fmean(o.reached for o in runs),
            f"{name}: points behind float32": lost.mean,
            f"{name}: points behind float32, upper 95 %": lost.upper,
            f"{name}: kB up and down to target": both,
            f"{name}: bytes down an upload": fmean(o.down[-1] / len(o.up) for o in runs),
        }
        if title and who != plain and not extent.quick:
            report.aims.append(Aim(f"{name}: points behind, upper 95 %", lost.upper, at_most=0.5))
    _gaps(report, extent)


def _gaps(report: Report, extent: Extent) -> None:
    """Bytes of diffs over gaps, in one run each of float32 and of 103 bytes up."""
    for way in (FLOAT32, *COMPARED_DOWN):
        setting = setting_of("small")
        downlink = Walked(setting.network.spec)
        seed = extent.seeds[0]
        lived(setting, way, world_of("small", seed), seed, downlink=downlink)
        last = len(downlink.points) - 1
        name = f"down, {way} up"
        singles = [downlink.merged(s, s + 1) for s in range(last)]
        report.figures[f"{name}: bytes a version"] = fmean(singles)
        report.figures[f"{name}: bytes a version, second half"] = fmean(singles[last // 2 :])
        half = 2 * setting.network.spec.size
        report.figures[f"{name}: float16 keyframe bytes"] = half
        report.figures[f"{name}: lattice keyframe bytes"] = downlink.keyframe(last)
        for gap in GAPS[2::2]:
            starts = range(0, last - gap, 7)
            report.figures |= {
                f"{name}, after {gap} versions: merged bytes": fmean(
                    downlink.merged(s, s + gap) for s in starts
                ),
                f"{name}, after {gap} versions: ladder bytes": fmean(
                    downlink.laddered(s, s + gap) for s in starts
                ),
                f"{name}, after {gap} versions: chain bytes": fmean(
                    downlink.chained(s, s + gap) for s in starts
                ),
            }
        merged = report.figures[f"{name}, after 16 versions: merged bytes"]
        report.aims.append(
            Aim(
                f"{name}: merged diff after 16 versions, of a float16 keyframe",
                merged / half,
                at_most=1 / 18,
            )
        )


# -- bytes ---------------------------------------------------------------------------------


def _trained(model: Model, seed: int) -> Params:
    """A delta as it is after some training: the 300th upload's base is long forgotten."""
    setting, world = setting_of(model), world_of(model, seed)
    rng = np.random.Generator(np.random.PCG64([seed, 9]))
    params = setting.network.initial(rng)
    for share in world.devices:
        params += setting.network.train(params, share, setting.steps, rng) / 5
    return setting.network.train(params, world.devices[0], setting.steps, rng)


def _codecs(report: Report, extent: Extent) -> None:
    seed = extent.seeds[0]
    for model in ("small", "big"):
        delta = _trained(model, seed)
        power = float(np.vdot(delta, delta))
        share = float(np.abs(delta).sum()) ** 2 / power / delta.size
        report.figures[f"codecs, {model}: (sum |u|)^2 / (n sum u^2)"] = share
        for way in ways_of(model):
            codec = codec_by_name(way.codec)
            ask = Ask(CodecOptions(way.codec, way.density), way.budget, 0.0)
            rng = np.random.Generator(np.random.PCG64([seed, 11]))
            errors, lengths = [], []
            for _ in range(4 if extent.quick else 20):
                payload = codec.encode(delta, ask, rng)
                back = to_dense(codec.decode(memoryview(payload), delta.size), delta.size)
                back -= delta
                errors.append(float(np.vdot(back, back)) / power)
                lengths.append(len(payload))
            name = f"codecs, {model}, {way}"
            report.figures[f"{name}: bytes"] = fmean(lengths)
            report.figures[f"{name}: squared error, of the delta's"] = fmean(errors)
            if way.budget:
                report.aims.append(
                    Aim(f"{name}: longest payload", max(lengths), at_most=way.budget)
                )


def _wire(report: Report, extent: Extent) -> None:
    for model in ("small", "big"):
        delta = _trained(model, extent.seeds[0])
        spec = setting_of(model).network.spec
        rng = np.random.Generator(np.random.PCG64([extent.seeds[0], 11]))
        for way in (FLOAT32, Way("topk_int8"), *(Way("sq", b) for b in BUDGETS)):
            codec = codec_by_name(way.codec)
            ask = Ask(CodecOptions(way.codec, way.density), way.budget, 0.2)
            payload = codec.encode(delta, ask, rng)
            for names, who in ((USUAL, "usual names"), (SHORTEST, "shortest names")):
                for short in (False, True):
                    sent = packets(spec, codec.codec_id, payload, names, short=short)
                    name = f"wire, {model}, {way}, {who}, {'short' if short else 'long'} header"
                    report.figures |= {
                        f"{name}: header bytes": sent.header,
                        f"{name}: PUBLISH bytes": sent.publish,
                        f"{name}: bytes up": sent.up(),
                        f"{name}: bytes down, PUBACK and Receipt": sent.down(),
                        f"{name}: bytes both ways": sent.up() + sent.down(),
                        f"{name}: bytes both ways at 20 % loss": sent.up(0.2) + sent.down(0.2),
                    }

    spec = setting_of("small").network.spec
    for names, who in ((USUAL, "usual names"), (SHORTEST, "shortest names")):
        for lattice in (False, True):
            one = offer(spec, names, lattice=lattice)
            name = f"wire, a version {'on the lattice' if lattice else 'in float32'}, {who}"
            report.figures[f"{name}: manifest bytes"] = one.manifest
            report.figures[f"{name}: bytes around a chunk"] = one.chunk


def _others(report: Report, extent: Extent) -> None:
    for model in ("small", "big"):
        spec = setting_of(model).network.spec
        for name, size in sizes(spec, _trained(model, extent.seeds[0])).items():
            report.figures[f"others, {model}, {name}: bytes an update"] = size
    report.notes.append(
        "others: their serialisation alone, without gRPC, HTTP, protobuf heads or S3 keys; models "
        "and not deltas travel in Flower, NVFlare and FedML, at the same size. OpenFL's STC as of "
        "its sources: a tenth of each tensor, codes as float32 under gzip, no Golomb code and no "
        "residual. QAFeL sends as much down with every version"
    )


def _timing(report: Report, extent: Extent) -> None:
    ways = (*ways_of("small")[:9], *(Way(name, 1) for name in FILLING))
    timed(report, tuple(dict.fromkeys(ways)), extent.seeds[0], quick=extent.quick)
    if extent.quick:
        return
    report.aims += [
        Aim(
            "sq: decode and fold over dense numpy fold, 1M",
            report.figures["1,000,000: sq fold over dense numpy fold"],
            at_most=0.03,
        ),
        Aim(
            "sq: encode ms, 1M",
            report.figures["1,000,000: sq 1050 B: encode ms"],
            at_most=100.0,
        ),
    ]


PARTS: Final[dict[str, Callable[[Report, Extent], None]]] = {
    "codecs": _codecs,
    "small": _learn("small"),
    "cnn": _learn("cnn"),
    "turbofan": _learn("turbofan"),
    "big": _learn("big"),
    "faults": _faults,
    "both": _both,
    "down": _down,
    "wire": _wire,
    "others": _others,
    "timing": _timing,
}


if __name__ == "__main__":
    sys.exit(main())
