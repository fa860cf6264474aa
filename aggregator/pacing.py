"""How large a share of the fleet is to train: a controller, part of the fold. Pure.

An update tells how many train at once: those that were folded since its device took its base. When
that was is not known, but that it was while the base was the newest published one: half of what was
folded in that time is counted. In rounds everything is fresh, or it is refused as too stale: there
it is what was folded and what came late. It looks only as often as so many updates have come as
are under way, because those before were begun under another share.

Everything follows from the log. It refuses nothing: who trains without being asked is folded.
"""

from itertools import zip_longest
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

SCORE_DRIFT: Final = 2.0
"""Between two looks the mean score moves by no more than this factor, whoever is loud."""

MARKS: Final = 64
"""Publications of which it is remembered when they were made; who trains from an older one counts
like one of FAR."""

FAR: Final = 4
"""One update speaks for no more than so many times the devices that are wanted."""

ENOUGH: Final = 1.25
"""A hint is said again when it is further off than by this factor."""


class Pacing(msgspec.Struct, frozen=True):
    """What the controller remembers.

    Attributes:
        share: of the fleet that is to train.
        score: the mean score of updates; 0: none was heard.
        anchor: that mean when it last looked; 0: it has not.
        said: the hint that is retained; None: there is none.
        marks: of the newest publications: the version, and the updates folded until then.
        came: updates that were folded since it last looked,
        doubled: and twice the sum of how many were under way, as each of them tells.
        late: the task's updates that were too stale when it last looked.
    """

    share: float = 1.0
    score: float = 0.0
    anchor: float = 0.0
    said: PaceHint | None = None
    marks: tuple[tuple[int, int], ...] = ()
    came: int = 0
    doubled: int = 0
    late: int = 0

    @property
    def version(self) -> int:
        """The newest publication that it has seen; -1: none."""
        return self.marks[-1][0] if self.marks else -1


def scored(pacing: Pacing, score: float) -> Pacing:
    """With one more score in the exponential mean; nonsense is passed over."""
    if not 0.0 < score < 1e12:
        return pacing
    mean = pacing.score
    if not mean:
        return msgspec.structs.replace(pacing, score=score)
    held = min(max(score, mean / SCORE_FACTOR), mean * SCORE_FACTOR)
    fresh, anchor = mean + (held - mean) / SCORE_MEMORY, pacing.anchor or mean
    fresh = min(max(fresh, anchor / SCORE_DRIFT), anchor * SCORE_DRIFT)
    return msgspec.structs.replace(pacing, score=fresh)


def noted(pacing: Pacing, spec: TaskSpec, *, base: int, folded: int) -> Pacing:
    """With one more update that was folded.

    Args:
        pacing: what is remembered.
        spec: the task.
        base: the version it was trained from.
        folded: updates since the origin, this one included.
    """
    most = 2 * FAR * spec.pace.concurrency
    under_way = most
    for (version, since), following in zip_longest(pacing.marks, pacing.marks[1:]):
        if version == base:
            until = folded if following is None else following[1]
            under_way = min(2 * folded - since - until, most)
    return msgspec.structs.replace(pacing, came=pacing.came + 1, doubled=pacing.doubled + under_way)


def paced(pacing: Pacing, spec: TaskSpec, *, version: int, folded: int, late: int) -> Pacing:
    """After a publication: look at what came since, move the share, say it if it is news.

    The share is multiplied by sqrt(concurrency / N), between 1/2 and 2: half the way, because what
    is seen is what was asked for some time ago.

    Args:
        pacing: what is remembered.
        spec: the task.
        version: that was published.
        folded: updates since the origin.
        late: updates that were too stale.
    """
    wanted = spec.pace.concurrency
    if not wanted:
        return Pacing()
    first, came = not pacing.marks, pacing.came
    rounds = spec.strategy.synchronous
    behind = min(late - pacing.late, FAR * wanted)
    busy = float(came + behind) if rounds else pacing.doubled / (2 * max(came, 1))
    marks = (*pacing.marks, (version, folded))[-MARKS:]
    pacing = msgspec.structs.replace(pacing, marks=marks)
    if first or (came > 0 and (rounds or came >= max(wanted, busy))):
        share = pacing.share
        if not first:
            ratio = 4.0 if busy * 4.0 <= wanted else max(wanted / busy, 0.25)
            share = min(1.0, max(SHARE_LEAST, share * sqrt(ratio)))
        pacing = msgspec.structs.replace(
            pacing, share=share, came=0, doubled=0, late=late, anchor=pacing.score
        )
    return msgspec.structs.replace(pacing, said=_said(pacing))


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
