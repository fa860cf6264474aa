"""What became of one update, as it is told to whoever watches the fold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from aggregator.strategies import Contribution
from schemas.delta import Delta
from schemas.log import EntryId
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of one update, told to whoever watches the fold.

    Attributes:
        entry_id: of its entry.
        device: who sent it.
        boot: with its spool's number, and
        seq: the update's; 0 and 0 when it could not be read.
        base: the version it was trained from; -1 when it could not be read.
        staleness: versions that had passed since.
        weight: with which it was folded; 0 when it was refused.
        outcome: FOLDED or a Reason.
        version: that it goes into; of a refused one, the model's at that moment.
        delta: what was folded; None when it was refused.
    """

    entry_id: EntryId
    device: DeviceId
    boot: Boot
    seq: int
    base: int
    staleness: int
    weight: float
    outcome: int
    version: int
    delta: Delta | None


Observer: TypeAlias = Callable[[Decided], None]


def decided(
    entry_id: EntryId,
    device: DeviceId,
    header: ModelUpdate | None,
    outcome: int,
    *,
    now: int,
    folded: tuple[float, int, Contribution] | None = None,
) -> Decided:
    """Say it. `now` is the model's version; `folded` weight, version and contribution."""
    boot, seq, base = (header.boot, header.seq, header.base_version) if header else (0, 0, -1)
    weight, version, staleness, delta = 0.0, now, now - base if header else 0, None
    if folded is not None:
        weight, version, contribution = folded
        staleness, delta = contribution.staleness, contribution.delta
    return Decided(
        entry_id, device, Boot(boot), seq, base, staleness, weight, outcome, version, delta
    )
