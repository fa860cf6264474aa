"""The server's own judge: measures every version that is kept on held-out examples of its own.

It works beside the fold, never in it: what it finds is written into the log, and counts from there
on. One version at a time: what everybody has, then what waits to be compared with it. One that was
overtaken meanwhile is left out.

Where [strategy.robust].guard asks for the server's own step, it also trains: from the version that
everybody has, on a root data set of its own. An evaluator that can do so has a method
`guide(tensors) -> tensors`, and is given copies that it may train in place.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from aggregator.publishing import params_of
from aggregator.state import Release, TaskState
from aggregator.store import TaskStore
from schemas.errors import ConfigError
from schemas.evaluation import Evaluation
from schemas.log import Evaluated, Guided
from schemas.names import TaskName
from schemas.params import Params, ParamSpec, flatten, travelling, unflatten
from schemas.task import TaskSpec

log = logging.getLogger("fedmq.aggregator")

Evaluate: TypeAlias = Callable[[Mapping[str, Params]], Evaluation]
"""Named tensors, float32 -> what they are worth."""

Guide: TypeAlias = Callable[[dict[str, Params]], Mapping[str, NDArray[np.generic]]]
"""Named tensors, float32 -> the same after training on the server's root data set."""


@dataclass(frozen=True, slots=True)
class Guiding:
    """An evaluator that the server's own step can be asked of, too."""

    evaluate: Evaluate
    guide: Guide

    def __call__(self, tensors: Mapping[str, Params]) -> Evaluation:
        """Measure, like any evaluator."""
        return self.evaluate(tensors)


class Judge:
    """Measures the versions of one task."""

    def __init__(self, task: TaskName, store: TaskStore, evaluate: Evaluate | None) -> None:
        self._task = task
        self._store = store
        self._evaluate = evaluate
        self._guide: Guide | None = getattr(evaluate, "guide", None)
        self._unguarded = False
        self._wanted: list[tuple[Release, ParamSpec]] = []
        self._to_guide: tuple[Release, TaskSpec] | None = None
        self._guided: tuple[int, TaskSpec] | None = None
        self._wake = asyncio.Event()
        self._tried: set[int] = set()

    def look(self, state: TaskState) -> None:
        """See which versions are to be measured now."""
        waiting = None if state.candidate is None else state.releases[state.candidate]
        both = [release for release in (state.published, waiting) if release is not None]
        self._tried &= {release.version for release in both}
        if state.spec is None:
            return
        self._wanted = [
            (release, state.spec.params)
            for release in both
            if not release.judgement.server_examples and release.version not in self._tried
        ]
        last, spec = state.published, state.spec
        self._to_guide = None
        if last is not None and spec.strategy.robust.guard != "none":
            fresh = self._guided != (last.version, spec)
            self._to_guide = (last, spec) if fresh else None
            if self._guide is None and not self._unguarded:
                log.warning("guard_without_guide task=%s: every update passes it", self._task)
                self._unguarded = True
        self._wake.set()

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._wanted and self._evaluate is not None:
                release, spec = self._wanted.pop(0)
                self._tried.add(release.version)
                await self._measure(self._evaluate, release, spec)
            if self._guide is not None and self._to_guide is not None:
                (base, task), self._to_guide = self._to_guide, None
                self._guided = (base.version, task)  # what it writes is news, too
                if not await self._train(self._guide, base, task.params):
                    self._guided = None

    async def _train(self, guide: Guide, base: Release, spec: ParamSpec) -> bool:
        """Whether it has come to something; if not, it is tried again when there is news."""
        blob = await self._store.blob(base.params_blob)
        if blob is None:
            return False
        try:
            delta = await asyncio.to_thread(_step, guide, spec, params_of(blob))
        except Exception as exc:  # the user's code must not stop the fold
            where = None if isinstance(exc, ValueError | ConfigError) else exc
            told = "guide_failed task=%s version=%d error=%s"
            log.log(logging.ERROR, told, self._task, base.version, exc, exc_info=where)
            return False
        log.info("guided task=%s version=%d", self._task, base.version)
        await self._store.append(Guided(base.version, delta.astype("<f4").tobytes()))
        return True

    async def _measure(self, evaluate: Evaluate, release: Release, spec: ParamSpec) -> None:
        blob = await self._store.blob(release.params_blob)
        if blob is None:
            return
        try:
            found = await asyncio.to_thread(_checked, evaluate, unflatten(spec, params_of(blob)))
        except Exception as exc:  # the user's code must not stop the fold
            where = None if isinstance(exc, ValueError | ConfigError) else exc
            told = "evaluation_failed task=%s version=%d error=%s"
            log.log(logging.ERROR, told, self._task, release.version, exc, exc_info=where)
            return
        figures = " ".join(f"{name}={value:.4g}" for name, value in found.metrics.items())
        log.info("evaluated task=%s version=%d %s", self._task, release.version, figures)
        await self._store.append(Evaluated(release.version, found.num_examples, found.metrics))


def _checked(evaluate: Evaluate, tensors: Mapping[str, Params]) -> Evaluation:
    found = evaluate(tensors)
    if found.num_examples < 1 or not all(map(isfinite, found.metrics.values())):
        msg = "the evaluator found NaN, infinity, or nothing"
        raise ValueError(msg)
    plain = {str(name): float(value) for name, value in found.metrics.items()}
    return Evaluation(int(found.num_examples), plain)


def _step(guide: Guide, spec: ParamSpec, base: Params) -> Params:
    trained = flatten(spec, guide(unflatten(spec, base.copy())))
    delta = travelling(spec, trained) - travelling(spec, base)
    if not np.isfinite(delta).all():
        msg = "the guide found NaN or infinity"
        raise ValueError(msg)
    return delta
