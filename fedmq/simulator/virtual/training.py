"""Training that waits until it is needed, and is then done for many devices in one call."""

from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Final

from fedmq.simulator.virtual.learner import Job, Learner, Trained

BATCH: Final = 64
"""So many jobs at once."""


@dataclass(slots=True)
class Work:
    """A job, and what came of it when it is done; the base is let go then."""

    job: Job | None
    trained: Trained | None = None


@dataclass(slots=True)
class Bench:
    """Jobs that wait, by when they will be needed.

    Attributes:
        learner: who trains.
        trained: jobs that were done.
    """

    learner: Learner
    trained: int = 0
    _waiting: list[tuple[float, int, Work]] = field(default_factory=list)
    _count: int = 0

    def put(self, job: Job, needed_s: float) -> Work:
        """Let a job wait."""
        work = Work(job)
        self._count += 1
        heappush(self._waiting, (needed_s, self._count, work))
        return work

    def drop(self, work: Work) -> None:
        """Nobody will need it."""
        work.job = None

    def done(self, work: Work) -> Trained:
        """What came of a job; if it was not done yet, those that are needed next are, too."""
        if work.trained is None:
            self._train(work)
        assert work.trained is not None  # noqa: S101 - it has just been trained
        return work.trained

    def _train(self, first: Work) -> None:
        batch = [first]
        while self._waiting and len(batch) < BATCH:
            work = heappop(self._waiting)[2]
            if work is not first and work.job is not None:
                batch.append(work)
        jobs = [work.job for work in batch if work.job is not None]
        for work, trained in zip(batch, self.learner.train(jobs), strict=True):
            work.trained, work.job = trained, None
        self.trained += len(jobs)
