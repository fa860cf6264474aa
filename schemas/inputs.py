"""What a model of a task is fed: which columns, how they are scaled, how readings make a sample.

For devices with data of the usual kinds (`fedmq-agent --data`); a custom trainer may obey it too.
"""

from math import isfinite
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

FEATURES_MAX: Final = 4096
"""Columns of one reading, at most."""

Column: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Columns: TypeAlias = Annotated[tuple[Column, ...], msgspec.Meta(max_length=FEATURES_MAX)]
_Numbers: TypeAlias = Annotated[tuple[float, ...], msgspec.Meta(max_length=FEATURES_MAX)]
Layout: TypeAlias = Literal["auto", "window-first", "features-first"]
"""The order of a window's axes, as the model takes them."""

_Readings: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65_536)]


class InputOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[input]`: what of a device's data the model is fed.

    Attributes:
        features: columns, or fields of a reading, in the model's order; none: all other numeric
            columns, in the file's own order; a live topic's must be named if there are several.
        label: the column or field that is to be told; a device's --label wins; empty: the device
            says it, or the sample is its own label (an autoencoder).
        normalise: `none`; `device`: by mean and standard deviation of the device's own data, which
            it keeps to itself; `task`: by `mean` and `std`.
        mean: with `task`, one a feature, or one for all.
        std: as mean, each above 0.
        window: readings a sample: its shape is (window, features), with 1 (features,).
        stride: readings from the beginning of one sample to that of the next.
        horizon: the label is that of so many readings after the window's last; 0: of the last.
        layout: the axes of a window: `window-first` is (window, features), `features-first` is
            (features, window); `auto`: as the model's shape has it, where only one of them fits.
    """

    features: _Columns = ()
    label: Annotated[str, msgspec.Meta(max_length=128)] = ""
    normalise: Literal["none", "device", "task"] = "none"
    mean: _Numbers = ()
    std: _Numbers = ()
    window: _Readings = 1
    stride: _Readings = 1
    horizon: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0
    layout: Layout = "auto"

    def __post_init__(self) -> None:
        """Refuse a scale that could not be applied, and a column named twice (ValueError)."""
        if len(set(self.features)) != len(self.features):
            msg = "input.features names a column twice"
            raise ValueError(msg)
        if self.label in self.features and not self.horizon:
            msg = f"input.features names the label {self.label!r}, which is to be told from them"
            raise ValueError(msg)
        if self.normalise != "task":
            if self.mean or self.std:
                msg = 'input.mean and input.std go unheard without normalise = "task"'
                raise ValueError(msg)
            return
        if not self.mean or len(self.mean) != len(self.std):
            msg = 'normalise = "task" needs input.mean and input.std of the same length'
            raise ValueError(msg)
        if self.features and len(self.mean) not in {1, len(self.features)}:
            msg = f"{len(self.features)} features but {len(self.mean)} numbers in input.mean"
            raise ValueError(msg)
        if not (all(map(isfinite, self.mean)) and all(0 < s < float("inf") for s in self.std)):
            msg = "input.mean must be finite, input.std finite and above 0"
            raise ValueError(msg)
