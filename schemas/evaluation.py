"""How good a version is: measured on held-out examples, by devices or by the server. Pure.

A device measures the model it has adopted, before it trains from it, and sends the figures with
its update: under `@name`, with the number of examples under `@`. They speak of the update's base.
The server keeps only sums over devices: no single device's figures leave the log.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Final, Literal, TypeAlias

import msgspec

MARK: Final = "@"
"""Before the name of a metric of the base model; alone: the number of examples."""

Better: TypeAlias = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one judge found of one model.

    Attributes:
        num_examples: held-out examples it was measured on, at least 1.
        metrics: finite floats by name.
    """

    num_examples: int
    metrics: Mapping[str, float]


class Mean(msgspec.Struct, frozen=True):
    """A mean over examples: sum of value times examples, and examples."""

    total: float = 0.0
    examples: int = 0

    def plus(self, value: float, examples: int) -> "Mean":
        """With one more device's figure."""
        return Mean(self.total + value * examples, self.examples + examples)

    @property
    def value(self) -> float:
        """The weighted mean; 0 of nothing."""
        return self.total / self.examples if self.examples else 0.0


class Judgement(msgspec.Struct, frozen=True):
    """All that is known of how good one version is.

    Attributes:
        devices: how many devices have reported.
        means: their weighted means, by metric.
        server: what the server measured, by metric.
        server_examples: on how many examples.
    """

    devices: int = 0
    means: dict[str, Mean] = {}
    server: dict[str, float] = {}
    server_examples: int = 0

    def with_device(self, found: Evaluation) -> "Judgement":
        """With one more device's report."""
        means = self.means | {
            name: self.means.get(name, Mean()).plus(value, found.num_examples)
            for name, value in found.metrics.items()
        }
        return msgspec.structs.replace(self, devices=self.devices + 1, means=means)

    def with_server(self, found: Evaluation) -> "Judgement":
        """With the server's own figures; the first count."""
        if self.server_examples:
            return self
        return msgspec.structs.replace(
            self, server=dict(found.metrics), server_examples=found.num_examples
        )

    def figure(self, metric: str, *, by: str, min_devices: int) -> float | None:
        """One metric as `devices` or `server` found it; None while too few have reported."""
        if by == "server":
            return self.server.get(metric)
        if self.devices < min_devices or metric not in self.means:
            return None
        return self.means[metric].value


def reported(metrics: Mapping[str, float]) -> Evaluation | None:
    """What an update's metrics say of its base; None when they say nothing, or nothing sane."""
    examples = metrics.get(MARK, 0.0)
    if not (isfinite(examples) and 1 <= examples <= 2**31):
        return None
    found = {
        name.removeprefix(MARK): value
        for name, value in metrics.items()
        if name.startswith(MARK) and name != MARK
    }
    return Evaluation(int(examples), found) if found else None


def marked(found: Evaluation) -> dict[str, float]:
    """Lay an evaluation out as metrics of an update."""
    named = {f"{MARK}{name}": float(value) for name, value in found.metrics.items()}
    return {MARK: float(found.num_examples)} | named


def worse(value: float, than: float, *, better: Better, margin: float) -> bool:
    """Tell whether a figure is worse than another by more than the margin."""
    return value < than - margin if better == "higher" else value > than + margin
