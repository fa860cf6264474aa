"""How large a share of the fleet is to train: a controller, part of the fold. Pure.

Of N devices that train at once about N / K send within one version, so the mean staleness is about
N / K: what is folded tells how many there are. In rounds everything is fresh, or it is refused as
too stale: there N is what was folded and what came late. It looks only as often as so many updates
have come as are under way, because those before were begun under another share.

Everything follows from the log. It refuses nothing: who trains without being asked is folded.
"""

from math import sqrt
from typing import Final

import msgspec

from schemas.outcomes import Reason, outcome_name
from schemas.pace import SHARE_LEAST, PaceHint
from schemas.task import TaskSpec

LATE: Final = outcome_name(Reason.TOO_STALE)
"""How the tally calls what came late."""

SCORE_MEMORY: Final = 16
"""The mean score is that of about so many updates."""

SCORE_FACTOR: Final = 4.0
"""A score counts as no more than so many times the mean, and no less than its so manyth part."""

ENOUGH: Final = 1.25
"""A hint is said again when it is further off than by this factor."""


class Pacing(msgspec.Struct, frozen=True):
    """What the controller remembers.

    Attributes:
        share: of the fleet that is to train.
        score: the mean score of updates; 0: none was heard.
        said: the hint that is retained; None: there is none.
        version: the newest publication that it has seen; -1: none.
        folded: the task's updates when it last looked,
        staleness: the sum of their staleness,
        late: and those that were too stale.
    """

    share: float = 1.0
    score: float = 0.0
    said: PaceHint | None = None
    version: int = -1
    folded: int = 0
    staleness: int = 0
    late: int = 0


def scored(pacing: Pacing, score: float) -> Pacing:
    """With one more score in the exponential mean; nonsense is passed over."""
    if not 0.0 < score < 1e12:
        return pacing
    mean = pacing.score
    if not mean:
        return msgspec.structs.replace(pacing, score=score)
    held = min(max(score, mean / SCORE_FACTOR), mean * SCORE_FACTOR)
    return msgspec.structs.replace(pacing, score=mean + (held - mean) / SCORE_MEMORY)


def roused(pacing: Pacing) -> Pacing:
    """A buffer was flushed by time: too few are awake. Twice the share."""
    return msgspec.structs.replace(pacing, share=min(1.0, 2.0 * pacing.share))


def paced(
    pacing: Pacing, spec: TaskSpec, *, version: int, folded: int, staleness: int, late: int
) -> Pacing:
    """After a publication: look at what came since, move the share, say it if it is news.

    The share is multiplied by sqrt(concurrency / N), between 1/2 and 2: half the way, because what
    is seen is what was asked for some time ago.

    Args:
        pacing: what is remembered.
        spec: the task.
        version: that was published.
        folded: updates since the origin.
        staleness: the sum of theirs.
        late: updates that were too stale.
    """
    wanted, size = spec.pace.concurrency, spec.strategy.buffer_size
    if spec.strategy.name == "fedasync":
        size = 1  # every update is a version
    if not wanted:
        return Pacing()
    new, stale, behind = folded - pacing.folded, staleness - pacing.staleness, late - pacing.late
    share = pacing.share
    came, rounds = new + behind, spec.strategy.synchronous
    stale += behind * (spec.strategy.staleness_bound + 1)  # at least
    busy = float(came) if rounds else stale / max(came, 1) * size
    looks = came > 0 and (rounds or came >= max(wanted, busy))
    if looks:
        ratio = 4.0 if busy * 4.0 <= wanted else max(wanted / busy, 0.25)
        share = min(1.0, max(SHARE_LEAST, share * sqrt(ratio)))
        pacing = msgspec.structs.replace(pacing, folded=folded, staleness=staleness, late=late)
    fresh = msgspec.structs.replace(pacing, share=share, version=version)
    return msgspec.structs.replace(fresh, said=_said(fresh))


def _said(pacing: Pacing) -> PaceHint:
    """The hint to two digits, or the one that stands while it is near enough."""
    said, score = pacing.said, pacing.score or 1.0
    if said is not None and not (_far(pacing.share, said.share) or _far(score, said.score)):
        return said
    return PaceHint(_two_digits(pacing.share), _two_digits(score))


def _far(value: float, said: float) -> bool:
    return value > ENOUGH * said or value * ENOUGH < said


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")
