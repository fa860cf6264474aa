"""What a soak came to: one JSON object, the promise it is judged by, and sentences. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from fedmq.simulator.checker import Account, Verdict
from fedmq.simulator.soak.plan import Plan
from fedmq.simulator.soak.schedule import NOT_HERE

MANY: Final = 200
"""From so many faults on, each kind that was drawn must have been struck."""

_NOT_OURS: Final = ("redis-", "broker")
"""Whose end is told, but breaks no promise of fedmq's; the lab broker's does."""


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
    evidence: Mapping[str, Any],
    machine: Mapping[str, str],
) -> dict[str, object]:
    """Lay the outcome out for --json."""
    newest = max(account.digests, default=0)
    adopted: Mapping[str, int | None] = evidence["adopted"]
    return {
        "seed": progress.plan.seed,
        "seconds": round(progress.elapsed_s, 1),
        "devices": progress.plan.devices,
        "broker": progress.plan.broker,
        "redis": progress.plan.redis,
        "codec": progress.plan.codec,
        "lattice": progress.plan.lattice,
        "faults": progress.faults,
        "faults_by_kind": dict(sorted(progress.struck.items())),
        "left_out": progress.left_out,
        "deaths": progress.deaths,
        "tracebacks": evidence.get("tracebacks", {}),
        "tasks_failed": evidence.get("tasks_failed", {}),
        "created": verdict.created,
        "folded": verdict.folded,
        "rejected": verdict.rejected,
        "superseded": verdict.superseded,
        "open": verdict.open,
        "removed": verdict.removed,
        "unsent": verdict.unsent,
        "lost": len(verdict.lost),
        "folded_twice": len(verdict.folded_twice),
        "strangers": len(verdict.strangers),
        "strangers_folded": len(verdict.strangers_folded),
        "duplicates_dropped": account.duplicates,
        "unreadable": account.nameless,
        "version": account.version,
        "digest": verdict.digest,
        "sequential_digest": verdict.sequential_digest[: len(verdict.digest)],
        "versions_checked": verdict.versions_checked,
        "blobs_checked": verdict.blobs_checked,
        "devices_at_newest": sum(version == newest for version in adopted.values()),
        "mismatches": verdict.mismatches,
        "broken": list(broken(progress, verdict, account, evidence)),
        "kept": kept(progress, verdict, account, evidence),
        "machine": dict(machine),
    }


def kept(
    progress: Progress, verdict: Verdict, account: Account, evidence: Mapping[str, Any]
) -> bool:
    """Nothing lost, nothing twice, the same bits, all at the newest version, and no trouble."""
    return not list(broken(progress, verdict, account, evidence))


def broken(
    progress: Progress, verdict: Verdict, account: Account, evidence: Mapping[str, Any]
) -> Iterator[str]:
    """What keeps the promise from being kept, or proven; nothing when it was."""
    if not verdict.kept:
        yield "updates or models are not what they must be"
    if behind := _behind(account, evidence["adopted"]):
        yield f"the newest model is not on {', '.join(behind)}"
    if verdict.open:
        yield f"{verdict.open} updates are still open"
    for what, count in (
        ("struck", progress.faults),
        ("created", verdict.created),
        ("folded", verdict.folded),
    ):
        if not count:
            yield f"nothing was {what}"
    if dead := _own(progress):
        yield f"ended by themselves: {_counted(dead)}"
    if found := evidence.get("tracebacks"):
        yield f"tracebacks in the logs: {_counted(found)}"
    if found := evidence.get("tasks_failed"):
        yield f"tasks that failed: {_counted(found)}"
    if progress.next_fault >= MANY and (never := _never_struck(progress)):
        yield f"drawn, but never struck: {', '.join(never)}"


def _behind(account: Account, adopted: Mapping[str, int | None]) -> list[str]:
    """Who does not have the newest model."""
    newest = max(account.digests, default=0)
    return sorted(name for name, version in adopted.items() if version != newest)


def _own(progress: Progress) -> dict[str, int]:
    """Deaths of fedmq's own processes."""
    others = _NOT_OURS if progress.plan.broker != "lab" else _NOT_OURS[:1]
    return {name: n for name, n in progress.deaths.items() if not name.startswith(others)}


def _never_struck(progress: Progress) -> list[str]:
    """Faults that were drawn, that this machine can strike, and that were left out every time."""
    left_out = (text.partition(": ") for text in progress.left_out)
    drawn = {name for name, _, why in left_out if why not in NOT_HERE}
    return sorted(drawn - progress.struck.keys())


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))


def in_words(
    progress: Progress, verdict: Verdict, account: Account, evidence: Mapping[str, Any]
) -> str:
    """The outcome for people."""
    newest = max(account.digests, default=0)
    behind = _behind(account, evidence["adopted"])
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
    lines = [struck, *verdict.sentences()[:-1], twice]
    if progress.left_out:
        lines.append(f"Left out: {_counted(progress.left_out)}.")
    if progress.deaths:
        lines.append(f"Ended by themselves and were started again: {_counted(progress.deaths)}.")
    why = "; ".join(broken(progress, verdict, account, evidence))
    lines.append(f"The promise was NOT kept: {why}." if why else "The promise was kept.")
    return "\n".join(lines)
