"""What a strategy is: a frozen triple of functions over a state that it owns.

    init(params)                      -> State             version 0, or a restored model
    fold(state, contribution, views)  -> (State, Outcome)  one admitted update
    flush(state)                      -> (State, Outcome)  a deadline has passed
    forget(state, device)             -> (State, changed)  a device is erased

Pure at the door, thrifty inside: the vectors in a State belong to the strategy, which updates
them in place; a State that was given away is spent. Anyone who keeps a model keeps a copy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

import msgspec

from schemas.delta import Delta
from schemas.names import DeviceId
from schemas.outcomes import Reason
from schemas.params import Params

NOBODY: Final = DeviceId("")
"""For contributions that no device has made."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """An admitted update: decoded, fitting, finite. Only `admit` makes one, only `fold` takes one.

    Attributes:
        base_version: the published version it was trained from.
        staleness: versions that passed since, at least 0.
        num_examples: examples in one local epoch.
        delta: `w_local - w_base`; of a merged one the mean of its devices' weighted deltas.
        scale: a factor on its weight: 1, less for the sake of fairness, or 0 in a history that is
            folded without its device.
        device: whose it is.
        contributions: of how many devices it is made; 1 but for what a regional server has merged.
        carried: the mean weight with which those were merged: 1 of a device.
    """

    base_version: int
    staleness: int
    num_examples: int
    delta: Delta
    scale: float = 1.0
    device: DeviceId = NOBODY
    contributions: int = 1
    carried: float = 1.0


class Row(msgspec.Struct, frozen=True):
    """One contribution that waits by itself, because a rule compares it with others.

    Attributes:
        name: of its vector in the state: the weighted delta, float32, shape (size,).
        device: whose it is.
        weight: with which its delta was multiplied; of several the mean.
        delay: the largest staleness in it.
        count: of how many contributions of this device it is the mean.
    """

    name: str
    device: DeviceId
    weight: float
    delay: int = 0
    count: int = 1


@dataclass(frozen=True, slots=True)
class State:
    """The model and whatever else the strategy carries from fold to fold.

    Attributes:
        version: folds that changed the model so far.
        vectors: float32 vectors of shape (size,); `params` is always among them.
        buffered: contributions that wait in the buffer.
        scalars: numbers by name, such as the sum of the buffer's weights.
        rows: contributions that wait one by one, oldest first.
        packed: bytes by name, such as what a device has sent last; names begin with `cache:`.
    """

    version: int
    vectors: Mapping[str, Params]
    buffered: int = 0
    scalars: Mapping[str, float] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    packed: Mapping[str, bytes] = field(default_factory=dict)

    def with_buffer(self, buffered: int, scalars: Mapping[str, float]) -> "State":
        """The same, but for how many wait, and the numbers."""
        return replace(self, buffered=buffered, scalars=scalars)

    def next_version(self) -> "State":
        """The same under the next version's number."""
        return replace(self, version=self.version + 1)


@dataclass(frozen=True, slots=True)
class Buffered:
    """The contribution waits in the buffer. `changed` names vectors, packed too, not as before."""

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


@dataclass(frozen=True, slots=True)
class Refused:
    """The strategy does not believe this contribution; the state is as it was."""

    reason: Reason
    detail: str


Outcome: TypeAlias = Buffered | Advanced | Refused
Views: TypeAlias = Mapping[int, Params]
"""Published models by version, newest last; empty unless the strategy needs them."""


def remembers_nobody(state: State, _device: DeviceId) -> tuple[State, frozenset[str]]:
    """For strategies that keep nothing under a device's name."""
    return state, frozenset()


@dataclass(frozen=True, slots=True)
class Strategy:
    """One way to make versions out of updates.

    `views` is how many published models `fold` must be able to look at. `forget` leaves nothing of
    a device that is known by name, and says which vectors are not as before.
    """

    init: Callable[[Params], State]
    fold: Callable[[State, Contribution, Views], tuple[State, Outcome]]
    flush: Callable[[State], tuple[State, Advanced | Unchanged]]
    views: int = 0
    forget: Callable[[State, DeviceId], tuple[State, frozenset[str]]] = remembers_nobody
