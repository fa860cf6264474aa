"""What a simulated run came to, as one JSON object and in words. Pure."""

import math
from collections.abc import Mapping
from typing import Any

from fedmq.simulator.virtual.outcome import Outcome, Sample, final


def figure_of(outcome: Outcome) -> str:
    """The figure that a run is told by: its target's, else accuracy, else the first measured."""
    names = [*outcome.target, *(name for s in outcome.samples for name in s.figures)]
    if not outcome.target and "accuracy" in names:
        return "accuracy"
    return names[0] if names else "accuracy"


def kept(outcome: Outcome) -> bool:
    """Whether the run reached what it was after; without a target there is nothing to break."""
    return not outcome.target or outcome.reached is not None


def as_json(outcome: Outcome, *, machine: Mapping[str, str], peak_mib: float) -> dict[str, Any]:
    """One run for programs. A figure that was never measured, or is no number, is null.

    All but `wall_s`, `events_per_second`, `peak_mib` and `machine` is the same every time.
    """
    last = outcome.samples[-1]
    return {
        "name": outcome.name,
        "devices": outcome.devices,
        "seed": outcome.seed,
        "version": outcome.version,
        "digest": outcome.digest,
        "accuracy": _or_none(final(outcome, "accuracy")),
        "figures": {name: _or_none(final(outcome, name)) for name in sorted(last.figures)},
        "target": outcome.target,
        "reached": kept(outcome),
        "to_target": _spent(outcome.reached) if outcome.target else None,
        **_spent_at(last),
        "staleness_mean": outcome.staleness_mean,
        "outcomes": dict(sorted(outcome.outcomes.items())),
        "participation": {
            "devices": outcome.participation.devices,
            "most": outcome.participation.most,
            "top_tenth": outcome.participation.top_tenth,
            "gini": outcome.participation.gini,
        },
        "dead": outcome.dead,
        "trained": outcome.trained,
        "personal": {name: _or_none(value) for name, value in outcome.personal.items()},
        "events": outcome.events,
        "wall_s": outcome.wall_s,
        "events_per_second": events_per_second(outcome),
        "peak_mib": peak_mib,
        "machine": dict(machine),
    }


def events_per_second(outcome: Outcome) -> float:
    """Of real time; 0 where no time was taken."""
    return outcome.events / outcome.wall_s if outcome.wall_s > 0 else 0.0


def in_words(outcome: Outcome) -> str:
    """The run in plain words."""
    last, figure, shares = outcome.samples[-1], figure_of(outcome), outcome.participation
    lines = [
        (
            f"{outcome.devices:,} devices, {outcome.name}: {figure} "
            f"{value_of(figure, final(outcome, figure))} at version {outcome.version}."
        )
    ]
    if outcome.target:
        lines.append(_on_target(outcome))
    folded = outcome.outcomes.get("folded", 0)
    others = ", ".join(
        f"{count:,} {name}" for name, count in sorted(outcome.outcomes.items()) if name != "folded"
    )
    lines += [
        (
            f"They sent {last.uploads:,} updates in {duration(last.virtual_s)} of virtual time; "
            f"{folded:,} were folded{f'; {others}' if others else ''}. "
            f"Mean staleness {outcome.staleness_mean:.1f}."
        ),
        (
            f"Up went {amount(last.bytes_up)}, down came {amount(last.bytes_down)}; "
            f"{last.joules:,.0f} J of energy; {outcome.dead:,} batteries are empty."
        ),
        (
            f"{shares.devices:,} devices made the model; the tenth of them with most weight has "
            f"{shares.top_tenth:.0%} of it (gini {shares.gini:.2f})."
        ),
        (
            f"{outcome.events:,} events in {outcome.wall_s:.1f} s, "
            f"{events_per_second(outcome):,.0f} a second. Digest {outcome.digest}, "
            f"seed {outcome.seed}."
        ),
    ]
    if outcome.personal:
        told = ", ".join(f"{name} {value:.3f}" for name, value in outcome.personal.items())
        lines.append(f"On devices, over a sample: {told}.")
    return "\n".join(lines)


def _on_target(outcome: Outcome) -> str:
    figure, wanted = next(iter(outcome.target.items()))
    told = f"{figure} {value_of(figure, wanted)}"
    at = outcome.reached
    if at is None:
        return f"The target, {told}, was NOT reached."
    return (
        f"The target, {told}, was reached after {at.uploads:,} uploads, {amount(at.bytes_up)} up, "
        f"{amount(at.bytes_down)} down, {duration(at.virtual_s)} of virtual time and "
        f"{at.joules:,.0f} J."
    )


def value_of(figure: str, value: float) -> str:
    """A figure as people read it: shares in per cent."""
    if math.isnan(value):
        return "not measured"
    return f"{value:.1%}" if figure.startswith("accuracy") else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Virtual time as people read it."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"


def amount(count: int) -> str:
    """Bytes as people read them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def _spent(sample: Sample | None) -> dict[str, Any] | None:
    return None if sample is None else _spent_at(sample)


def _spent_at(sample: Sample) -> dict[str, Any]:
    return {
        "uploads": sample.uploads,
        "bytes_up": sample.bytes_up,
        "bytes_down": sample.bytes_down,
        "virtual_s": sample.virtual_s,
        "joules": sample.joules,
    }


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
