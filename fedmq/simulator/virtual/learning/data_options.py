"""`[data]` of a fleet file: what the devices know, and the network that learns it. Pure."""

from typing import Annotated, Literal, TypeAlias

import msgspec

from schemas.strategy import NonNegative, Positive

Partition: TypeAlias = Literal["auto", "natural", "iid", "dirichlet", "shards", "quantity"]
Width: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class DataOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where examples come from and who gets which.

    Attributes:
        source: `digits` (scikit-learn's), `turbofan:PATH` of C-MAPSS' train_FD001.txt, or
            `module:function` of your own: (device, generator) -> (features, labels).
        held_out: with a source of your own, `module:function`: (generator) -> (features, labels) of
            the examples that every version is measured on.
        partition: `natural` (as the source has it: an engine a device, or what your function
            gives), `iid`, `dirichlet` (every device prefers some classes), `shards` (a device knows
            few classes), `quantity` (same classes, unequal numbers); `auto`: dirichlet for digits,
            natural for the others, which know no other.
        alpha: of dirichlet and quantity: small is skewed, large is even.
        shards_per_device: of `shards`: classes a device knows, about.
        examples: a device, drawn with replacement (on average, with quantity), at least 8; 0: all
            examples are dealt out once, and where that gives a device fewer than 8, 50 are drawn
            for each.
        drift_classes: labels rotate by so many classes ...
        drift_s: ... in so many virtual seconds, again and again: first no example has the new
            label, then ever more; 0: no drift.
        root: examples of the digits that the server has itself, for [task.strategy.robust] guard.
        hidden: widths of the ReLU network's hidden layers; none: softmax regression.
        trainer: instead of the built-in network's training, `module:Class` of a Trainer; made as
            Class(features, labels) for every round, it trains W1, b1, W2, b2, ... as given. A
            ValueError of it is a round that comes to nothing.
    """

    source: str = "digits"
    held_out: str = ""
    partition: Partition = "auto"
    alpha: Positive = 0.3
    shards_per_device: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 2
    examples: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    drift_classes: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    drift_s: NonNegative = 0.0
    root: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    hidden: Annotated[tuple[Width, ...], msgspec.Meta(max_length=16)] = (32,)
    trainer: str = ""
