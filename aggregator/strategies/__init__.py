"""Strategies: each a frozen value of pure functions; the paper is in the docstring."""

from aggregator.staleness import staleness_weight
from aggregator.strategies.fedasync import fedasync
from aggregator.strategies.fedbuff import fedbuff
from aggregator.strategies.strategy import (
    Advanced,
    Buffered,
    Contribution,
    Outcome,
    State,
    Strategy,
    Unchanged,
    Views,
)
from schemas.task import StrategyOptions


def strategy_for(options: StrategyOptions, buffers: tuple[slice, ...] = ()) -> Strategy:
    """The strategy that a task asks for; `buffers` lie where nothing is trained, only measured."""
    weigh = staleness_weight(options.staleness)
    unit = options.examples_unit

    def example_share(num_examples: int) -> float:
        return min(num_examples, unit) / unit if unit else 1.0

    match options.name:
        case "fedbuff":
            return fedbuff(
                buffer_size=options.buffer_size,
                weigh=weigh,
                server_lr=options.server_lr,
                momentum=options.momentum,
                example_share=example_share,
                buffers=buffers,
            )
        case "fedasync":
            return fedasync(
                alpha=options.alpha, weigh=weigh, views=options.views, example_share=example_share
            )


__all__ = [
    "Advanced",
    "Buffered",
    "Contribution",
    "Outcome",
    "State",
    "Strategy",
    "Unchanged",
    "Views",
    "fedasync",
    "fedbuff",
    "strategy_for",
]
