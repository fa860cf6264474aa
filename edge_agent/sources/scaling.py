"""Mean and standard deviation of a device's features: found once, kept to itself.

They stand in a JSON file in the device's state_dir and never change while the features are the
same: what was trained on stays in one scale. They are never sent.
"""

import json
import os
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.sources.samples import Array
from schemas.inputs import InputOptions

BYTES_MAX: Final = 1 << 20
"""Of the file, at most."""

_LEAST: Final = 1e-6
"""A feature that varies by less than this, or than this part of its mean, is only shifted."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Features become (x - mean) / std.

    Attributes:
        mean: shape (features,), or (1,) for all.
        std: as mean, above 0.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    def applied(self, x: Array, *, per: int) -> Array:
        """Scale features; a fresh array, float32.

        Args:
            x: shape (n, ..., features), or (n, ...) where one scale is for all.
            per: how many features there are; 1: x is one.

        Raises:
            ValueError: the scale is for another number of features.
        """
        if self.mean.size not in {1, per}:
            told = f"{per} features, but a mean and std of {self.mean.size}"
            raise ValueError(f"{told}: give one a feature in [input], or one for all")
        scaled = (x.astype(np.float64) - self.mean) / self.std
        return scaled.astype(np.float32)


def features_in(x: Array) -> int:
    """How many features samples have: the last axis of rows and windows; an image is one."""
    return int(x.shape[-1]) if x.ndim in {2, 3} else 1


def measured(x: Array) -> Scale:
    """The scale of samples, shape (n, ..., features); n is at least 1."""
    flat = x.reshape(-1, features_in(x)).astype(np.float64)
    mean, std = flat.mean(axis=0), flat.std(axis=0)
    std[std <= _LEAST * np.maximum(1.0, np.abs(mean))] = 1.0
    return Scale(mean, std)


def scale_of(given: InputOptions, kept: Path, features: tuple[str, ...], x: Array) -> Scale | None:
    """The scale that the task asks for; a device's own is read, or measured and written.

    Args:
        given: the task's [input].
        kept: the device's file.
        features: their names, if they have any: of others nothing is kept.
        x: samples as they came, at least one.

    Raises:
        OSError: the file cannot be written.
    """
    if given.normalise == "none":
        return None
    if given.normalise == "task":
        return Scale(np.array(given.mean), np.array(given.std))
    per = features_in(x)
    scale = _read(kept, features, per)
    if scale is None:
        scale = measured(x)
        _write(kept, features, scale)
    return scale


def _read(kept: Path, features: tuple[str, ...], per: int) -> Scale | None:
    """What the file says of these features; None where it says nothing believable."""
    try:
        with kept.open("rb") as file:
            raw = file.read(BYTES_MAX + 1)
        told: dict[str, Any] = json.loads(raw[:BYTES_MAX])
        mean, std = ([float(number) for number in told[name]] for name in ("mean", "std"))
        names = tuple(told["features"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    fits = names == features and len(mean) == len(std) == per
    sane = all(map(isfinite, mean)) and all(isfinite(s) and s > 0 for s in std)
    return Scale(np.array(mean), np.array(std)) if fits and sane else None


def _write(kept: Path, features: tuple[str, ...], scale: Scale) -> None:
    """Written beside, synced and renamed: a power cut leaves the old file or the new one."""
    told = {"features": features, "mean": scale.mean.tolist(), "std": scale.std.tolist()}
    part = kept.with_name(kept.name + ".part")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as file:
        json.dump(told, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(kept)
