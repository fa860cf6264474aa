"""What a strategy is: a frozen triple of functions over a state that it owns.

    init(params)                      -> State            version 0, or a restored model
    fold(state, contribution, views)  -> (State, Outcome)  one admitted update
    flush(state)                      -> (State, Outcome)  a deadline has passed

Pure at the door, thrifty inside: the vectors in a State belong to the strategy, which updates
them in place; a State that was given away is spent. Anyone who keeps a model keeps a copy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from schemas.delta import Delta
from schemas.params import Params


@dataclass(frozen=True, slots=True)
class Contribution:
    """An admitted update: decoded, fitting, finite. Only `admit` makes one, only `fold` takes one.

    Attributes:
        base_version: the published version it was trained from.
        staleness: versions that passed since, at least 0.
        num_examples: examples in one local epoch.
        delta: `w_local - w_base`.
        scale: a factor on its weight: 1, or 0 in a history that is folded without its device.
    """

    base_version: int
    staleness: int
    num_examples: int
    delta: Delta
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class State:
    """The model and whatever else the strategy carries from fold to fold.

    Attributes:
        version: folds that changed the model so far.
        vectors: float32 vectors of shape (size,); `params` is always among them.
        buffered: contributions that wait in the buffer.
    """

    version: int
    vectors: Mapping[str, Params]
    buffered: int = 0


@dataclass(frozen=True, slots=True)
class Buffered:
    """The contribution waits in the buffer. `changed` names the vectors that are not as before."""

    weight: float
    changed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Advanced:
    """The model has a new version."""

    weight: float
    changed: frozenset[str]


@dataclass(frozen=True, slots=True)
class Unchanged:
    """There was nothing to flush."""


Outcome: TypeAlias = Buffered | Advanced
Views: TypeAlias = Mapping[int, Params]
"""Published models by version, newest last; empty unless the strategy needs them."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to make versions out of updates.

    `views` is how many published models `fold` must be able to look at.
    """

    init: Callable[[Params], State]
    fold: Callable[[State, Contribution, Views], tuple[State, Outcome]]
    flush: Callable[[State], tuple[State, Advanced | Unchanged]]
    views: int = 0
