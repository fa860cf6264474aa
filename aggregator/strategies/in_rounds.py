"""FedAvg and FedAdam: synchronous rounds of K updates, all of the newest model.

FedAvg (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, arXiv 1602.05629, Algorithm 1), with deltas:

    w <- w + eta sum_k (n_k / n) delta_k,   n = sum_k n_k

which is the paper's line with eta = 1 and no momentum, the defaults. FedAdam (Reddi et al., ICLR
2021, arXiv 2003.00295, Algorithm 2) takes the same mean into `aggregator.strategies.adam`, without
bias correction. A round that is over before K have come divides by the examples it has.

Where a rule compares contributions, all weigh alike: num_examples is what the device says, and
who lies would claim many. A device that sends twice in a round has two updates in the sum.
"""

from aggregator.strategies.buffered import Weigh, buffered
from aggregator.strategies.running_sum import running_sum
from aggregator.strategies.stage import Stage
from aggregator.strategies.step import Step
from aggregator.strategies.strategy import Contribution, Strategy


def in_rounds(
    *, buffer_size: int, step: Step, buffers: tuple[slice, ...] = (), rows: Stage | None = None
) -> Strategy:
    """Make the strategy.

    Args:
        buffer_size: updates a round takes.
        step: sgd for FedAvg, adam for FedAdam.
        buffers: where the vectors hold statistics that are averaged, not trained.
        rows: where contributions wait to be compared; must divide by weights.
    """
    weigh: Weigh = _examples if rows is None else _alike
    stage = rows or running_sum(buffer_size, by_weights=True)
    return buffered(buffer_size, weigh, stage, step, buffers)


def _examples(contribution: Contribution) -> float:
    return float(contribution.num_examples)


def _alike(_contribution: Contribution) -> float:
    return 1.0
