"""Whether this device trains on a model, and for how many steps. Pure: time comes as an argument.

It draws for itself by the hint that topic `pace` has told; without one it trains on every model.
What it waits for is kept on the disk: a device that lives for less than a lease, or whose timer
stands still while it sleeps, goes on where it was. Its speed is not: that is soon known again.
"""

import struct
from dataclasses import dataclass, replace
from math import isfinite
from typing import Final

import msgspec

from edge_agent.allowance import CLOCK_IS_SET_S
from edge_agent.trainer import TrainResult
from schemas.pace import SCORE, Facts, PaceHint, PaceOptions, score, takes_part
from schemas.task import TrainOptions

MEMORY: Final = 0.3
"""What the newest round counts for in the mean speed."""

STEPS: Final = "steps"
"""The metric in which a trainer may tell how many steps it made."""

LOSSES: Final = ("loss_before", "loss", "loss_after")
"""The metrics that tell a mean loss: the first that there is counts."""


STARTS_MAX: Final = 65
"""More starts than this from one base are not counted: by then every share has doubled to 1. So no
base costs the disk more than some 66 writes of _RECORD, however often a device starts."""

_RECORD: Final = struct.Struct("<IIdIdd")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A base that this device was not drawn for.

    Attributes:
        base: epoch and version.
        clock_s: when it was first seen, in seconds since 1970; 0: the clock was not set.
        starts: lives of this device that have seen it.
        hint: by which it was drawn last when this was written.
    """

    base: tuple[int, int]
    clock_s: float
    starts: int
    hint: PaceHint


def to_disk(waiting: Waiting) -> bytes:
    """Write it down."""
    hint = waiting.hint
    return _RECORD.pack(*waiting.base, waiting.clock_s, waiting.starts, hint.share, hint.score)


def from_disk(raw: bytes | None) -> Waiting | None:
    """Read what an earlier life has written; None where there is none, or nothing believable."""
    if raw is None or len(raw) != _RECORD.size:
        return None
    epoch, version, clock_s, starts, share, score = _RECORD.unpack(raw)
    timely = isfinite(clock_s) and clock_s >= 0
    if not (timely and 1 <= starts <= STARTS_MAX and 0 < share <= 1 and 0 < score <= 1e30):
        return None
    return Waiting((epoch, version), clock_s, starts, PaceHint(share, score))


class Pacer:
    """What one device knows of its pace.

    Args:
        device: its name.
        kept: what its disk has of an earlier life (`unwritten`).

    Attributes:
        hint: the newest that this life has heard; None: none yet, and that of an earlier life
            counts, if one is on the disk.
    """

    def __init__(self, device: str, kept: bytes | None = None) -> None:
        self.hint: PaceHint | None = None
        self._device = device
        self._kept = from_disk(kept)
        self._base: tuple[int, int] | None = None
        self._since_s = 0.0
        self._since_clock_s = 0.0
        self._starts = 1
        self._wanted: Waiting | None = None
        self._speed = 0.0
        self._epoch_steps = 0
        self._facts = Facts()

    def waits_s(
        self,
        options: PaceOptions,
        base: tuple[int, int],
        now_s: float,
        clock_s: float,
        facts: Facts,
    ) -> float:
        """How long until it draws again; 0: it trains on this base now.

        It draws once a start, and again with every lease: one that passed in this life by its
        timer, or since the base was first seen by its clock, if that is set.

        Args:
            options: the task's.
            base: epoch and version.
            now_s: by a timer that nobody sets.
            clock_s: seconds since 1970, as the device's clock tells them.
            facts: of the device now; those of its newest round are known here.
        """
        if base != self._base:
            self._begin(base, now_s)
        if not self._since_clock_s and clock_s >= CLOCK_IS_SET_S:
            self._since_clock_s = clock_s
        mine = self._facts
        self._facts = replace(facts, examples=mine.examples, loss=mine.loss, seconds=mine.seconds)
        hint = self.hint or (self._kept.hint if self._kept is not None else None)
        if hint is None or not options.concurrency:
            return 0.0
        lease_s, earlier = options.lease_s, self._starts - 1
        awake_s, passed_s = max(0.0, now_s - self._since_s), self._by_clock_s(clock_s)
        attempt = max(int(passed_s / lease_s), earlier + int(awake_s / lease_s))
        own = score(options, self._facts)
        if takes_part(self._device, *base, attempt, hint, own, options.explore):
            self._wanted = None
            return 0.0
        self._wanted = Waiting(base, self._since_clock_s, self._starts, hint)
        by_timer_s = (attempt + 1 - earlier) * lease_s - awake_s
        by_clock_s = (attempt + 1) * lease_s - passed_s
        return max(min(by_timer_s, by_clock_s if passed_s else by_timer_s), 1e-3)

    @property
    def unwritten(self) -> bytes | None:
        """What is to be written down, since the device waits; None: the disk has it already."""
        wanted, kept = self._wanted, self._kept
        if wanted is None or (kept is not None and replace(kept, hint=wanted.hint) == wanted):
            return None
        return to_disk(wanted)

    def written(self, raw: bytes) -> None:
        """The disk has it now."""
        self._kept = from_disk(raw)

    def _begin(self, base: tuple[int, int], now_s: float) -> None:
        """Another base, or the first of this life: which an earlier one may have seen."""
        kept, self._base, self._since_s = self._kept, base, now_s
        self._since_clock_s, self._starts, self._wanted = 0.0, 1, None
        if kept is not None and kept.base == base:
            self._since_clock_s = kept.clock_s
            self._starts = min(kept.starts + 1, STARTS_MAX)

    def _by_clock_s(self, clock_s: float) -> float:
        """Since the base was first seen, by the device's clock; 0 where that cannot be told."""
        if not self._since_clock_s or clock_s < CLOCK_IS_SET_S:
            return 0.0
        return max(0.0, clock_s - self._since_clock_s)

    def asked(self, options: PaceOptions, train: TrainOptions) -> TrainOptions:
        """So many steps as this device makes in the time that is asked for.

        FedCompass' idea (Li et al., "FedCompass: Efficient Cross-Silo Federated Learning on
        Heterogeneous Client Devices Using a Computing Power-Aware Scheduler", ICLR 2024): all work
        for the same time. The first round, before its speed is known, is as [train] says.
        """
        if not options.seconds or not self._speed:
            return train
        most = options.steps_max or 1_000_000_000
        steps = min(max(int(options.seconds * self._speed), options.steps_min), most)
        epochs = -(-steps // max(1, self._epoch_steps))
        return msgspec.structs.replace(train, steps=steps, epochs=min(epochs, 1_000_000))

    def trained(self, asked: TrainOptions, result: TrainResult, seconds: float) -> None:
        """Note what a round has shown; of one that time has cut off its trainer tells the steps."""
        examples = result.num_examples
        self._epoch_steps = max(1, -(-examples // asked.batch_size))
        whole = asked.epochs * self._epoch_steps
        planned = min(asked.steps, whole) if asked.steps else whole
        steps = result.metrics.get(STEPS, 0 if asked.seconds else planned)
        if steps > 0 and seconds > 0:
            now = steps / seconds
            self._speed = self._speed + MEMORY * (now - self._speed) if self._speed else now
        loss = next((result.metrics[name] for name in LOSSES if name in result.metrics), None)
        self._facts = replace(self._facts, examples=examples, loss=loss, seconds=seconds)

    def metrics(self, options: PaceOptions) -> dict[str, float]:
        """What the server needs of it for the mean score."""
        if options.select == "any" or not options.concurrency:
            return {}
        own = score(options, self._facts)
        return {} if own is None else {SCORE: own}
