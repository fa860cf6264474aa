"""Which columns of a table are features and which is the label. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.inputs import FEATURES_MAX, InputOptions


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns to read.

    Attributes:
        features: their names, in the model's order.
        label: the label's; empty: there is none.
    """

    features: tuple[str, ...]
    label: str

    @property
    def read(self) -> tuple[str, ...]:
        """What is read, each once: the features, then the label."""
        more = (self.label,) if self.label and self.label not in self.features else ()
        return self.features + more


def columns_of(
    names: Sequence[str], numeric: Sequence[str], given: InputOptions, what: str
) -> Columns:
    """Choose: the task's features, or else every numeric column but the label.

    With a horizon the label's own past is known, and is a feature too.

    Args:
        names: all columns, in the data's order.
        numeric: those of numbers.
        given: features, label and horizon.
        what: how a refusal calls the table.

    Raises:
        ValueError: one of them is not there, is named twice or holds no numbers.
    """
    label = given.label
    others = tuple(name for name in numeric if name != label or given.horizon)
    chosen = Columns(given.features or others, label)
    for name in chosen.read:
        if names.count(name) > 1:
            raise ValueError(f"{what}: has two columns {name!r}: rename one")
        if name not in names:
            shown = ", ".join(map(repr, names[:20]))
            raise ValueError(f"{what}: has no column {name!r}; there are {shown}")
        if name not in numeric:
            raise ValueError(f"{what}: column {name!r} holds no numbers: write it as numbers")
    if not 0 < len(chosen.features) <= FEATURES_MAX:
        told = f"{len(chosen.features)} numeric columns besides the label"
        raise ValueError(f"{what}: has {told}; name 1 to {FEATURES_MAX} in [input] features")
    return chosen
