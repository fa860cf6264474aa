"""Strategies: each a frozen value of pure functions; the paper is in the docstring."""

from collections.abc import Callable

from aggregator.staleness import StalenessWeight, constant, polynomial, staleness_weight
from aggregator.strategies.adam import adam
from aggregator.strategies.ca2fl import ca2fl
from aggregator.strategies.clipped import clipped
from aggregator.strategies.fadas import fadas
from aggregator.strategies.fedasync import fedasync
from aggregator.strategies.fedbuff import fedbuff
from aggregator.strategies.fedfa import fedfa
from aggregator.strategies.in_rounds import in_rounds
from aggregator.strategies.robust import guarded
from aggregator.strategies.rows import kept_rows
from aggregator.strategies.running_sum import running_sum
from aggregator.strategies.sgd import sgd
from aggregator.strategies.stage import Stage
from aggregator.strategies.strategy import (
    Advanced,
    Buffered,
    Contribution,
    Outcome,
    Refused,
    Row,
    State,
    Strategy,
    Unchanged,
    Views,
)
from schemas.strategy import StrategyOptions


def strategy_for(options: StrategyOptions, buffers: tuple[slice, ...] = ()) -> Strategy:
    """The strategy that a task asks for; `buffers` lie where nothing is trained, only measured."""
    strategy, robust = _unguarded(options, buffers), options.robust
    if robust.clip == "fixed" and not robust.keeps_rows:
        strategy = clipped(strategy, robust.clip_norm)
    return guarded(strategy, robust)


def _unguarded(options: StrategyOptions, buffers: tuple[slice, ...]) -> Strategy:
    size = options.buffer_size
    weigh = staleness_weight(options.staleness, _paper_weight(options))
    share = _example_share(options.examples_unit)
    match options.name:
        case "fedbuff":
            return fedbuff(
                buffer_size=size,
                weigh=weigh,
                server_lr=options.server_lr,
                momentum=options.momentum,
                example_share=share,
                buffers=buffers,
                stage=_stage(options),
            )
        case "fedasync":
            return fedasync(
                alpha=options.alpha, weigh=weigh, views=options.views, example_share=share
            )
        case "fadas":
            return fadas(
                buffer_size=size,
                options=options.adam,
                weigh=weigh,
                example_share=share,
                buffers=buffers,
                stage=_stage(options),
            )
        case "ca2fl":
            return ca2fl(
                buffer_size=size,
                server_lr=options.server_lr,
                fleet_size=options.fleet_size,
                weigh=weigh,
                example_share=share,
                buffers=buffers,
            )
        case "fedfa":
            return fedfa(buffer_size=size, views=options.views, weigh=weigh, example_share=share)
        case "fedavg" | "fedadam":
            step = (
                sgd(options.server_lr, options.momentum)
                if options.name == "fedavg"
                else adam(options.adam, keeps_max=False)
            )
            rows = _stage(options) if options.robust.keeps_rows else None
            return in_rounds(buffer_size=size, step=step, buffers=buffers, rows=rows)


def _paper_weight(options: StrategyOptions) -> StalenessWeight:
    """S(s) as the strategy's paper has it."""
    return polynomial(0.5) if options.name in {"fedbuff", "fedasync"} else constant()


def _example_share(unit: int) -> Callable[[int], float]:
    return lambda num_examples: min(num_examples, unit) / unit if unit else 1.0


def _stage(options: StrategyOptions) -> Stage:
    """Where contributions wait, and by what their sum is divided."""
    by_weights = options.synchronous or options.divide_by == "weights"
    notes_delay = options.name == "fadas"
    if not options.robust.keeps_rows:
        return running_sum(options.buffer_size, by_weights=by_weights, notes_delay=notes_delay)
    return kept_rows(
        options.buffer_size,
        options.robust,
        options.byzantine,
        by_weights=by_weights,
        notes_delay=notes_delay,
    )


__all__ = [
    "Advanced",
    "Buffered",
    "Contribution",
    "Outcome",
    "Refused",
    "Row",
    "State",
    "Strategy",
    "Unchanged",
    "Views",
    "fedasync",
    "fedbuff",
    "strategy_for",
]
