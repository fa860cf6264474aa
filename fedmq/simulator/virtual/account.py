"""What is counted of a run, and what is told of it at the end."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Final

from aggregator.fold import Decided
from fedmq.simulator.virtual.outcome import Participation, Sample
from schemas.outcomes import FOLDED, outcome_name

LOWER: Final = frozenset({"loss", "rmse", "nasa", "mae"})
"""Figures that are better when they are lower."""

IN_A_ROW: Final = 3
"""Versions over which the mean must meet a target."""

QUANTILES: Final = 1000


@dataclass(slots=True)
class Account:
    """Counters.

    Attributes:
        uploads: sent.
        bytes_up: in them.
        bytes_down: fetched.
        joules: spent.
        events: worked off.
        outcomes: of updates, by name.
        staleness: of folded updates.
        samples: so far.
    """

    uploads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    joules: float = 0.0
    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    staleness: Counter[int] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)

    def decided(self, decided: Decided) -> None:
        """Note what the fold has made of an update."""
        self.outcomes[outcome_name(decided.outcome)] += 1
        if decided.outcome == FOLDED:
            self.staleness[decided.staleness] += 1

    def sample(self, now_s: float, version: int, figures: dict[str, float]) -> None:
        """Write down where the run stands."""
        found = Sample(
            self.uploads,
            version,
            now_s,
            self.bytes_up,
            self.bytes_down,
            self.joules,
            figures,
        )
        self.samples.append(found)

    @property
    def staleness_mean(self) -> float:
        """Of what was folded; 0 when nothing was."""
        count = self.staleness.total()
        return sum(s * n for s, n in self.staleness.items()) / count if count else 0.0


def met(samples: list[Sample], target: dict[str, float]) -> Sample | None:
    """When the mean of the last IN_A_ROW versions that were measured is as good as asked for.

    Of a version that was measured more than once the newest sample counts. Returned is the first
    sample of the version in the middle, or of the latest of those that several figures ask for: a
    mean over three is as old as that, whether versions come every ten uploads or every thousand.
    None: not yet.
    """
    middles: list[int] = []
    for figure, wanted in target.items():
        last: dict[int, float] = {}
        for sample in reversed(samples):
            if figure in sample.figures:
                last.setdefault(sample.version, sample.figures[figure])
            if len(last) == IN_A_ROW:
                break
        else:
            return None
        mean = sum(last.values()) / IN_A_ROW
        if not (mean <= wanted if figure in LOWER else mean >= wanted):
            return None
        middles.append(list(last)[IN_A_ROW // 2])
    return next((s for s in samples if middles and s.version == max(middles)), None)


def participation(weights: Iterable[float]) -> Participation:
    """Who made the model, from the weight of every device that has contributed."""
    ascending = sorted(weight for weight in weights if weight > 0)
    total, count = sum(ascending), len(ascending)
    if not count:
        return Participation(0, 0.0, 0.0, 0.0, [])
    shares = [weight / total for weight in ascending]
    ranked = sum(rank * share for rank, share in enumerate(shares, start=1))
    return Participation(
        devices=count,
        most=shares[-1],
        top_tenth=sum(shares[count - (count + 9) // 10 :]),
        gini=2.0 * ranked / count - (count + 1) / count,
        shares=binned(shares),
    )


def binned(shares: list[float]) -> list[float]:
    """Means of QUANTILES bins of equal width, so that the sum over all devices stays what it is.

    Where a border falls within a device, each bin has its part of it. Few shares stay as they are.
    """
    count = len(shares)
    if count <= QUANTILES:
        return shares
    sums = [0.0, *accumulate(shares)]

    def until(place: float) -> float:
        whole = min(int(place), count - 1)
        return sums[whole] + (place - whole) * shares[whole]

    width = count / QUANTILES
    borders = [until(number * width) for number in range(QUANTILES + 1)]
    return [(end - begin) / width for begin, end in pairwise(borders)]
