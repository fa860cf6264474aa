"""Mean and standard deviation of a device's features: found once, kept to itself.

They stand in a JSON file in the device's state_dir and never change while source, features, shape
and dtype are the same: what was trained on stays in one scale. They are never sent.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge_agent.sources.samples import Array
from schemas.inputs import InputOptions

log = logging.getLogger("fedmq.agent")

BYTES_MAX: Final = 1 << 20
"""Of the file, at most."""

_LEAST: Final = 1e-6
"""A feature that varies by less than this, or than this part of its mean, is only shifted."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a device's scale was measured on; it is of no other data.

    Attributes:
        source: as the user names it.
        features: their names, if they have any.
        shape: of one sample.
        dtype: numpy's name of it.
    """

    source: str
    features: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, source: str, features: tuple[str, ...], x: Array) -> "Measured":
        """Of samples x, shape (n, ...)."""
        return cls(source, features, x.shape[1:], x.dtype.name)


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
        with np.errstate(over="ignore"):  # what float32 cannot hold is told where it is fitted
            return ((x.astype(np.float64) - self.mean) / self.std).astype(np.float32)


def features_in(x: Array) -> int:
    """How many features samples have: the last axis of rows and windows; an image is one."""
    return _features_of(x.shape[1:])


def _features_of(shape: tuple[int, ...]) -> int:
    return shape[-1] if len(shape) in {1, 2} else 1


def measured(x: Array) -> Scale:
    """The scale of samples, shape (n, ..., features); n is at least 1."""
    flat = x.reshape(-1, features_in(x)).astype(np.float64)
    mean, std = flat.mean(axis=0), flat.std(axis=0)
    std[std <= _LEAST * np.maximum(1.0, np.abs(mean))] = 1.0
    return Scale(mean, std)


def scale_of(given: InputOptions, kept: Path, of: Measured, x: Array) -> Scale | None:
    """The scale that the task asks for; a device's own is read, or measured and written.

    Args:
        given: the task's [input].
        kept: the device's file; what it holds of other data is told of and replaced.
        of: what x is.
        x: samples as they came, at least one.

    Raises:
        ValueError: there is no scale yet, and x is a single sample.
        OSError: the file cannot be written.
    """
    scale = kept_scale(given, kept, of)
    if scale is not None or given.normalise == "none":
        return scale
    if len(x) == 1:
        raise ValueError(f"{of.source}: {kept.name} has no scale of it, and one sample gives none")
    scale = measured(x)
    if kept.exists():
        log.warning("scale_measured_anew file=%s why=it_was_of_other_data now=%s", kept, of)
    _write(kept, of, scale)
    return scale


def kept_scale(given: InputOptions, kept: Path, of: Measured) -> Scale | None:
    """The task's scale, or what the device's file says of such data; None: nothing believable."""
    if given.normalise == "none":
        return None
    if given.normalise == "task":
        return Scale(np.array(given.mean), np.array(given.std))
    try:
        with kept.open("rb") as file:
            raw = file.read(BYTES_MAX + 1)
        told: dict[str, Any] = json.loads(raw[:BYTES_MAX])
        mean, std = ([float(number) for number in told[name]] for name in ("mean", "std"))
        was = Measured(told["source"], tuple(told["features"]), tuple(told["shape"]), told["dtype"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    sane = all(map(isfinite, mean)) and all(isfinite(s) and s > 0 for s in std)
    fits = was == of and len(mean) == len(std) == _features_of(of.shape)
    return Scale(np.array(mean), np.array(std)) if fits and sane else None


def _write(kept: Path, of: Measured, scale: Scale) -> None:
    """Written beside, synced and renamed: a power cut leaves the old file or the new one."""
    told = asdict(of) | {"mean": scale.mean.tolist(), "std": scale.std.tolist()}
    part = kept.with_name(kept.name + ".part")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as file:
        json.dump(told, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(kept)
