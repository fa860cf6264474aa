"""Whether a version that waits is published, held back, or waits on; and when a task is done. Pure.

Only what the log has said counts: reports, the server's figures, and the time of entries.
"""

from typing import Literal, TypeAlias

from aggregator.state import Release, TaskState
from schemas.evaluation import worse
from schemas.task import FinishOptions, TaskSpec

Verdict: TypeAlias = Literal["wait", "publish", "hold"]


def verdict(spec: TaskSpec, candidate: Release, last: Release, ms: int) -> Verdict:
    """Judge a candidate against the last published version at the log's time `ms`."""
    gate = spec.gate
    if gate.metric:
        least = spec.evaluate.min_devices
        new = candidate.judgement.figure(gate.metric, by=gate.by, min_devices=least)
        old = last.judgement.figure(gate.metric, by=gate.by, min_devices=least)
        if new is not None and old is not None:
            bad = worse(new, old, better=gate.better, margin=gate.margin)
            return "hold" if bad else "publish"
    elif not gate.canary:
        return "publish"  # the gate was lifted meanwhile
    if ms < deadline_ms(spec, candidate):
        return "wait"
    return gate.on_silence


def deadline_ms(spec: TaskSpec, candidate: Release) -> int:
    """When a candidate has waited long enough."""
    return candidate.at_ms + round(spec.gate.patience_s * 1000)


def done_because(options: FinishOptions, state: TaskState, ms: int) -> str | None:
    """Why a task is finished at the log's time `ms`; None while it is not."""
    if options.versions and state.model.version >= options.versions:
        return f"version {options.versions} is reached"
    if options.payload_bytes and state.tally.payload_bytes >= options.payload_bytes:
        return f"{options.payload_bytes} payload bytes are folded"
    if options.seconds and ms >= finish_ms(options, state):
        return f"{options.seconds:g} s have passed"
    if options.metric and state.since_best >= options.patience:
        return f"{options.metric} has not become better for {options.patience} published versions"
    return None


def finish_ms(options: FinishOptions, state: TaskState) -> int:
    """When the time of a task is over."""
    return state.started_ms + round(options.seconds * 1000)


def with_figure(
    options: FinishOptions, best: float | None, since: int, figure: float | None
) -> tuple[float | None, int]:
    """The best figure so far and the versions since, after one more published version."""
    if figure is None:
        return best, since
    if best is None:
        return figure, 0
    if worse(best, figure, better=options.better, margin=options.min_delta):
        return figure, 0
    return best, since + 1
