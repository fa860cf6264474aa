"""What a soak came to: one JSON object, the promise it is judged by, and sentences. Pure."""

from collections.abc import Mapping

import msgspec

from fedmq.simulator.checker import Account, Verdict
from fedmq.simulator.soak.plan import Plan


class Progress(msgspec.Struct):
    """How far a soak is; kept, so that it can be resumed.

    Attributes:
        plan: what was begun.
        elapsed_s: for how long faults have been struck.
        next_fault: the number of the next one.
        struck: faults that were inflicted, by kind and place.
        left_out: faults that could not be, by reason.
        deaths: processes that ended by themselves, by name.
        primary: which Redis is the primary.
        done: whether there is a verdict.
    """

    plan: Plan
    elapsed_s: float = 0.0
    next_fault: int = 0
    struck: dict[str, int] = msgspec.field(default_factory=dict)
    left_out: dict[str, int] = msgspec.field(default_factory=dict)
    deaths: dict[str, int] = msgspec.field(default_factory=dict)
    primary: int = 0
    done: bool = False

    @property
    def faults(self) -> int:
        """Faults that were inflicted."""
        return sum(self.struck.values())


def report(
    progress: Progress,
    verdict: Verdict,
    account: Account,
    *,
    adopted: Mapping[str, int | None],
    machine: Mapping[str, str],
) -> dict[str, object]:
    """Lay the outcome out for --json."""
    newest = max(account.digests, default=0)
    return {
        "seed": progress.plan.seed,
        "seconds": round(progress.elapsed_s, 1),
        "devices": progress.plan.devices,
        "broker": progress.plan.broker,
        "redis": progress.plan.redis,
        "codec": progress.plan.codec,
        "faults": progress.faults,
        "faults_by_kind": dict(sorted(progress.struck.items())),
        "left_out": progress.left_out,
        "deaths": progress.deaths,
        "created": verdict.created,
        "folded": verdict.folded,
        "rejected": verdict.rejected,
        "superseded": verdict.superseded,
        "open": verdict.open,
        "removed": verdict.removed,
        "lost": len(verdict.lost),
        "folded_twice": len(verdict.folded_twice),
        "duplicates_dropped": account.duplicates,
        "unreadable": account.nameless,
        "version": account.version,
        "digest": verdict.digest,
        "sequential_digest": verdict.sequential_digest[: len(verdict.digest)],
        "versions_checked": verdict.versions_checked,
        "devices_at_newest": sum(version == newest for version in adopted.values()),
        "mismatches": verdict.mismatches,
        "kept": kept(progress, verdict, account, adopted),
        "machine": dict(machine),
    }


def kept(
    progress: Progress, verdict: Verdict, account: Account, adopted: Mapping[str, int | None]
) -> bool:
    """Nothing lost, nothing twice, the same bits, and every device at the newest version."""
    newest = max(account.digests, default=0)
    level = all(version == newest for version in adopted.values())
    return verdict.kept and level and not verdict.open and progress.faults > 0


def in_words(
    progress: Progress, verdict: Verdict, account: Account, adopted: Mapping[str, int | None]
) -> str:
    """The outcome for people."""
    newest = max(account.digests, default=0)
    behind = sorted(name for name, version in adopted.items() if version != newest)
    where = "all devices have it" if not behind else f"NOT on {', '.join(behind)}"
    struck = (
        f"{progress.faults} faults in {progress.elapsed_s:.0f} s on {progress.plan.devices} "
        f"devices (seed {progress.plan.seed}); the model is at version {account.version}, "
        f"the newest published is {newest}: {where}."
    )
    twice = (
        f"Came twice and was counted once: {account.duplicates}; could not be read, and settled "
        f"nothing: {account.nameless}."
    )
    lines = [struck, *verdict.sentences(), twice]
    if progress.left_out:
        reasons = ", ".join(f"{why} ({n})" for why, n in sorted(progress.left_out.items()))
        lines.append(f"Left out: {reasons}.")
    if progress.deaths:
        dead = ", ".join(f"{name} ({n})" for name, n in sorted(progress.deaths.items()))
        lines.append(f"Ended by themselves and were started again: {dead}.")
    return "\n".join(lines)
