"""Whether this device trains on a model, and for how many steps. Pure: time comes as an argument.

It draws for itself by the hint that topic `pace` has told; without one it trains on every model.
Nothing of it is kept on the disk: the draw is a hash, and the device's speed is soon known again.
"""

from dataclasses import replace
from typing import Final

import msgspec

from edge_agent.trainer import TrainResult
from schemas.pace import SCORE, Facts, PaceHint, PaceOptions, score, takes_part
from schemas.task import TrainOptions

MEMORY: Final = 0.3
"""What the newest round counts for in the mean speed."""

STEPS: Final = "steps"
"""The metric in which a trainer may tell how many steps it made."""

LOSSES: Final = ("loss_before", "loss", "loss_after")
"""The metrics that tell a mean loss: the first that there is counts."""


class Pacer:
    """What one device knows of its pace.

    Args:
        device: its name.
    """

    def __init__(self, device: str) -> None:
        self.hint: PaceHint | None = None
        self._device = device
        self._base: tuple[int, int] | None = None
        self._since_s = 0.0
        self._speed = 0.0
        self._epoch_steps = 0
        self._facts = Facts()

    def waits_s(
        self, options: PaceOptions, base: tuple[int, int], now_s: float, facts: Facts
    ) -> float:
        """How long until it draws again; 0: it trains on this base now.

        Args:
            options: the task's.
            base: epoch and version.
            now_s: by a timer that nobody sets.
            facts: of the device now; those of its newest round are known here.
        """
        if base != self._base:
            self._base, self._since_s = base, now_s
        mine = self._facts
        self._facts = replace(facts, examples=mine.examples, loss=mine.loss, seconds=mine.seconds)
        if self.hint is None or not options.concurrency:
            return 0.0
        passed_s = max(0.0, now_s - self._since_s)
        attempt = int(passed_s / options.lease_s)
        own = score(options, self._facts)
        if takes_part(self._device, *base, attempt, self.hint, own, options.explore):
            return 0.0
        return max((attempt + 1) * options.lease_s - passed_s, 1e-3)

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
