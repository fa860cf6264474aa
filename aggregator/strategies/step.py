"""The second half of a buffered strategy: how a buffer's mean moves the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aggregator.strategies.stage import Closed
from schemas.params import Params


@dataclass(frozen=True, slots=True)
class Step:
    """Two functions.

    `begin` gives the vectors that the step keeps beside `params`. `apply` moves
    `vectors["params"]` by `closed.total / closed.divisor` in place, leaves zeros in
    `closed.total`, and names what else it has changed.
    """

    begin: Callable[[Params], dict[str, Params]]
    apply: Callable[[Mapping[str, Params], Closed], frozenset[str]]
