"""FedBuff: buffered asynchronous aggregation.

Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022,
arXiv 2106.06639, Algorithm 1, with delta = w_local - w_base (added):

    B <- B + S(s) delta                      on every contribution
    when K have come:  m <- beta m + B / K   divided by K, never by the sum of the weights
                       w <- w + eta_g m
                       B <- 0

Defaults: K = 10, S(s) = (1 + s)^-1/2, eta_g = 1, beta = 0. A fresh contribution weighs exactly 1;
num_examples weighs nothing unless asked. A flush folds a partial buffer and still divides by K:
who is absent has contributed zero, not vanished. Whoever asks for `divide_by = "weights"` gets
B / sum of S(s), which is not the paper's.

A merged update of c devices is the mean of c weighted deltas: it adds c S(s) delta and counts as
c. A buffer that it makes larger than K is divided by what is there.
"""

from collections.abc import Callable

from aggregator.staleness import StalenessWeight
from aggregator.strategies.buffered import buffered
from aggregator.strategies.running_sum import running_sum
from aggregator.strategies.sgd import sgd
from aggregator.strategies.stage import Stage
from aggregator.strategies.strategy import Contribution, Strategy


def fedbuff(
    *,
    buffer_size: int,
    weigh: StalenessWeight,
    server_lr: float = 1.0,
    momentum: float = 0.0,
    example_share: Callable[[int], float] = lambda _num_examples: 1.0,
    buffers: tuple[slice, ...] = (),
    stage: Stage | None = None,
) -> Strategy:
    """Make the strategy.

    Args:
        buffer_size: K.
        weigh: S(s).
        server_lr: eta_g.
        momentum: beta, 0 for none (then no vector is kept for it).
        example_share: num_examples -> factor in (0, 1].
        buffers: where the vectors hold statistics that are averaged, not trained.
        stage: where contributions wait; None: in a running sum that is divided by K.
    """

    def weight_of(contribution: Contribution) -> float:
        return weigh(contribution.staleness) * example_share(contribution.num_examples)

    stage = stage or running_sum(buffer_size)
    return buffered(buffer_size, weight_of, stage, sgd(server_lr, momentum), buffers)
