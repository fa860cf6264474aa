"""How soon a fleet has learnt: strategies beside each other, and defences under attack.

    race      uploads and virtual time to 90 %, by concurrency and skew: synchronous FedAvg with and
              without over-selection, FedAsync, FedBuff, FADAS, CA2FL, FedFa
    attack    accuracy of every defence under every attack, with dense and with sparse updates

Digits; in the race 500 or 5,000 devices of 50 examples, slow ones know other classes; under attack
20. All contenders of a seed have the same data, first model and devices. With --quick: one seed of
fewer cases, and nothing is judged.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any, Final

from benchmarks.report import Aim, Arguments, Report, progress, run
from benchmarks.virtual.runs import fleet, outcomes
from fedmq.simulator.virtual.fleet_file import FleetFile
from fedmq.simulator.virtual.outcome import Outcome, final
from schemas.strategy import SYNCHRONOUS

PARTS: Final = ("race", "attack")
SEEDS: Final = 5
TARGET: Final = 0.9
UPLOADS: Final = 20_000
"""A run that has not met the target by then counts as one that met it there."""

SKEWS: Final = (0.1, 0.5)
CONCURRENCIES: Final = (10, 50, 200, 1000)
"""The last with 5,000 devices, the others with 500: FedBuff's own setting on CIFAR-10."""

CONTENDERS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "fedavg": ({"server_lr": 0.5}, {}, {"server_lr": 2.0}),
    "fedavg, 1.3x selected": ({"server_lr": 0.5}, {}, {"server_lr": 2.0}),
    "fedadam, 1.3x selected": tuple({"adam": {"lr": lr, "eps": 1e-3}} for lr in (0.01, 0.03, 0.1)),
    "fedasync": tuple({"alpha": alpha, "views": 1024} for alpha in (0.05, 0.1, 0.2, 0.4)),
    "fedbuff": ({"server_lr": 0.5}, {}, {"server_lr": 2.0}),
    "fadas": tuple({"adam": {"lr": lr, "eps": 1e-3, "tau_c": 8}} for lr in (0.003, 0.01, 0.03)),
    "ca2fl": tuple({"server_lr": lr} for lr in (0.25, 0.5, 1.0)),
    "fedfa": ({"views": 1024},),
}
"""The choices of each; the seed before the first decides which. Those in rounds take as many
updates a round as there are slots for the others."""

ATTACKS: Final[dict[str, dict[str, Any]]] = {
    "no attack": {"kind": "none"},
    "sign-flip": {"kind": "sign-flip"},
    "sign-flip x4": {"kind": "sign-flip", "scale": 4.0},
    "label-flip": {"kind": "label-flip"},
    "ALIE z=1.5": {"kind": "alie", "z": 1.5},
    "scaling x10": {"kind": "scaling", "scale": 10.0},
}
"""By a fifth of the devices."""

DEFENCES: Final[dict[str, dict[str, Any]]] = {
    "no defence": {},
    "clip": {"clip": "median"},
    "median": {"rule": "median"},
    "trimmed mean": {"rule": "trimmed-mean"},
    "multi-krum": {"rule": "multi-krum"},
    "geometric median": {"rule": "geometric-median"},
    "centered clipping": {"rule": "centered-clipping"},
    "zeno++": {"guard": "zeno++", "clip": "median"},
    "aflguard": {"guard": "aflguard"},
    "nearest + trimmed": {"mix": "nearest", "rule": "trimmed-mean"},
    "clip + nearest + trimmed": {"clip": "median", "mix": "nearest", "rule": "trimmed-mean"},
}

RECOMMENDED: Final = "clip + nearest + trimmed"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse --part, and leave the rest to what all benchmarks share."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    said, rest = parser.parse_known_args(argv)
    parts = PARTS if said.part == "all" else (said.part,)
    about = f"Strategies and defences. --part: {', '.join(PARTS)}, all [all]"
    return run("strategies", about, lambda arguments: measured(arguments, parts), rest)


def measure(arguments: Arguments) -> Report:
    """Run every part."""
    return measured(arguments, PARTS)


def measured(arguments: Arguments, parts: Iterable[str]) -> Report:
    """Run some parts."""
    seeds = range(arguments.seed, arguments.seed + (1 if arguments.quick else SEEDS))
    report = Report("strategies", len(seeds))
    for part in parts:
        progress(f"strategies: {part}")
        {"race": _race, "attack": _attack}[part](report, seeds, quick=arguments.quick)
    return report


# -- race ----------------------------------------------------------------------------------


def racer(
    who: str, options: dict[str, Any], seed: int, *, skew: float, concurrency: int
) -> FleetFile:
    """One run of the race."""
    rule, _, selected = who.partition(", ")
    in_rounds, devices = rule in SYNCHRONOUS, max(500, 5 * concurrency)
    plain = {
        "name": rule,
        "buffer_size": concurrency if in_rounds else min(10, concurrency),
        "flush_after_s": 0.0,
        "max_staleness": 65_535,
        "fleet_size": devices,
    }
    return fleet(
        {
            "name": who,
            "devices": devices,
            "seed": seed,
            "data": {"alpha": skew, "examples": 50},
            "compute": {"steps_per_second": 1.0, "spread": 1.0, "slow_classes": 0.8},
            "participation": {
                "mode": "rounds" if in_rounds else "slots",
                "concurrency": concurrency,
                "over_selection": 1.3 if selected else 1.0,
                "deadline_s": 1e6,
                "lease_s": 1e6,
            },
            "stop": {"uploads": UPLOADS, "target": {"accuracy": TARGET}},
            "measure": {"every": 10},
            "task": {
                "strategy": plain | options,
                "train": {"epochs": 3, "learning_rate": 0.2},
                "codec": {"name": "float32"},
            },
        }
    )


def _race(report: Report, seeds: Sequence[int], *, quick: bool) -> None:
    skews, sizes = (SKEWS[:1], CONCURRENCIES[:1]) if quick else (SKEWS, CONCURRENCIES)
    cases = [(skew, size) for skew in skews for size in sizes]
    tried = [(c, who, o) for c in cases for who, choice in CONTENDERS.items() for o in choice]
    found = outcomes([racer(w, o, seeds[0] - 1, skew=c[0], concurrency=c[1]) for c, w, o in tried])
    best: dict[tuple[tuple[float, int], str], tuple[float, dict[str, Any]]] = {}
    for (case, who, options), one in zip(tried, found, strict=True):
        here = best.get((case, who))
        if here is None or _spent(one)[0] < here[0]:
            best[case, who] = _spent(one)[0], options
    fleets = [
        racer(who, options, seed, skew=case[0], concurrency=case[1])
        for (case, who), (_, options) in best.items()
        for seed in seeds
    ]
    runs = dict(zip(best, _batched(outcomes(fleets), len(seeds)), strict=True))
    for skew, size in cases:
        mine = {who: runs[(skew, size), who] for who in CONTENDERS}
        chosen = {who: best[(skew, size), who][1] for who in CONTENDERS}
        report.notes.append(f"Dirichlet {skew}, {size} at once: {chosen}")
        _tell_race(report, f"Dirichlet {skew}, {size} at once", mine, judged=not quick)


def _tell_race(report: Report, case: str, runs: dict[str, list[Outcome]], *, judged: bool) -> None:
    for who, mine in runs.items():
        uploads = [_spent(o)[0] for o in mine]
        name = f"{case}, {who}"
        report.figures |= {
            f"{name}: uploads": fmean(uploads),
            f"{name}: uploads, deviation": stdev(uploads) if len(uploads) > 1 else 0.0,
            f"{name}: virtual hours": fmean(_spent(o)[1] / 3600 for o in mine),
            f"{name}: runs that met the target": sum(o.reached is not None for o in mine),
            f"{name}: staleness": fmean(o.staleness_mean for o in mine),
            f"{name}: share of the weight of the top tenth": fmean(
                o.participation.top_tenth for o in mine
            ),
        }
    if not judged:
        return
    for what, who, least in (
        (0, "fedavg, 1.3x selected", 1.0),
        (0, "fedasync", 1.0),
        (1, "fedavg, 1.3x selected", 1.0),
        (1, "fedavg", 2.5),
    ):
        ratio = fmean(_spent(o)[what] for o in runs[who])
        ratio /= fmean(_spent(o)[what] for o in runs["fedbuff"])
        name = f"{case}: {('uploads', 'virtual time')[what]} of {who} over fedbuff's"
        report.aims.append(Aim(name, ratio, at_least=least))
    met = sum(o.reached is not None for o in runs["fedbuff"])
    report.aims.append(Aim(f"{case}: runs of fedbuff that met the target", met, at_least=SEEDS))


def _spent(found: Outcome) -> tuple[float, float]:
    """Uploads and virtual seconds to the target."""
    last = found.reached or found.samples[-1]
    return float(last.uploads), last.virtual_s


# -- attack --------------------------------------------------------------------------------


def attacked(attack: str, defence: str, codec: str, seed: int) -> FleetFile:
    """One run under attack."""
    return fleet(
        {
            "devices": 20,
            "seed": seed,
            "data": {"alpha": 0.3, "hidden": [128], "root": 72},
            "compute": {"spread": 0.5},
            "participation": {"mode": "slots", "concurrency": 20, "lease_s": 1e6},
            "attack": {"share": 0.2} | ATTACKS[attack],
            "stop": {"uploads": 1500},
            "task": {
                "uplink": "" if codec == "float32" else "131 B",
                "strategy": {
                    "buffer_size": 10,
                    "flush_after_s": 0.0,
                    "robust": {"byzantine": 2} | DEFENCES[defence],
                },
                "train": {"epochs": 3, "learning_rate": 0.2},
                "codec": {"name": codec},
            },
        }
    )


def _attack(report: Report, seeds: Sequence[int], *, quick: bool) -> None:
    attacks = list(ATTACKS)[:2] if quick else list(ATTACKS)
    for codec in ("float32",) if quick else ("float32", "sq"):
        defences = [d for d in DEFENCES if codec == "float32" or not _collapses(d)]
        cases = [(defence, attack) for defence in defences for attack in attacks]
        fleets = [attacked(a, d, codec, seed) for d, a in cases for seed in seeds]
        runs = _batched(outcomes(fleets), len(seeds))
        for (defence, attack), mine in zip(cases, runs, strict=True):
            reached = fmean(100 * final(o, "accuracy") for o in mine)
            report.figures[f"{codec}, {attack}, {defence}: accuracy"] = reached
            if defence == RECOMMENDED and not quick:
                name = f"{codec}, {attack}, {RECOMMENDED}: accuracy"
                report.aims.append(Aim(name, reached, at_least=85.0))


def _collapses(defence: str) -> bool:
    """Whether a task with sparse updates is refused this defence."""
    options = DEFENCES[defence]
    rule, guard = options.get("rule"), options.get("guard")
    return (rule in {"median", "trimmed-mean"} and "mix" not in options) or guard == "aflguard"


def _batched(found: Sequence[Outcome], size: int) -> list[list[Outcome]]:
    return [list(found[i : i + size]) for i in range(0, len(found), size)]


if __name__ == "__main__":
    sys.exit(main())
