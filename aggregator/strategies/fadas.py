"""FADAS: FedBuff with an adaptive step that heeds staleness.

Wang et al., "FADAS: Towards Federated Adaptive Asynchronous Optimization", ICML 2024,
arXiv 2407.18365, Algorithm 1. D = (1 / M) sum of the buffer's deltas, M = `buffer_size`, then the
step of `aggregator.strategies.adam` with vhat and

    eta_t = eta if smax <= tau_c else min(eta, 1 / smax)

where smax is the largest staleness in this buffer. Defaults: eta = 1e-3, beta1 = 0.9,
beta2 = 0.99, eps = 1e-8, tau_c = 1. Every delta weighs 1, unless the task asks for a staleness
weight.
"""

from collections.abc import Callable

from aggregator.staleness import StalenessWeight, constant
from aggregator.strategies.adam import adam
from aggregator.strategies.buffered import buffered
from aggregator.strategies.running_sum import running_sum
from aggregator.strategies.stage import Stage
from aggregator.strategies.strategy import Contribution, Strategy
from schemas.strategy import AdamOptions


def fadas(
    *,
    buffer_size: int,
    options: AdamOptions,
    weigh: StalenessWeight | None = None,
    example_share: Callable[[int], float] = lambda _num_examples: 1.0,
    buffers: tuple[slice, ...] = (),
    stage: Stage | None = None,
) -> Strategy:
    """Make the strategy; arguments as `fedbuff` has them. A `stage` must note the delay."""
    weighs = weigh or constant()

    def weight_of(contribution: Contribution) -> float:
        return weighs(contribution.staleness) * example_share(contribution.num_examples)

    stage = stage or running_sum(buffer_size, notes_delay=True)
    return buffered(buffer_size, weight_of, stage, adam(options, keeps_max=True), buffers)
