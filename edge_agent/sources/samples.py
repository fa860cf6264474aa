"""What a device trains on: arrays that fit the ports of a bundle. Pure.

Every refusal is a ValueError that names both sides and the remedy.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from schemas.bundle import CLASSES, BundleManifest, Port
from schemas.inputs import InputOptions, Layout

Array: TypeAlias = NDArray[np.generic]

BYTES_MAX: Final = 1 << 31
"""The most that the samples of one device may take, in bytes."""

_REAL: Final = "biuf"
"""numpy's kinds of bool, signed, unsigned and floating."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Samples as the training step takes them.

    Attributes:
        x: shape (n, *port.shape), of the port's dtype.
        y: labels, as x.
        first: the number of the first one, in the row of all that this device ever had.
    """

    x: Array
    y: Array
    first: int = 0

    def __len__(self) -> int:
        """The number of samples, n."""
        return len(self.x)


class Source(Protocol):
    """Where samples come from."""

    def samples(self) -> Samples:
        """All that there are now. Raises ValueError: there are none, or they do not fit."""
        ...

    def seen(self) -> int:
        """How many there have ever been."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A source that has all its samples from the beginning."""

    held: Samples

    def samples(self) -> Samples:
        """See `Source.samples`."""
        return self.held

    def seen(self) -> int:
        """See `Source.seen`."""
        return len(self.held)


@dataclass(frozen=True, slots=True)
class Fit:
    """What samples must fit: the ports of a bundle, and the task's [input].

    Attributes:
        manifest: of the bundle.
        given: the task's [input], with the label that the device names in its place.
    """

    manifest: BundleManifest
    given: InputOptions = field(default_factory=InputOptions)

    @property
    def labelled(self) -> bool:
        """Whether the data has labels; if not a sample is its own (an autoencoder)."""
        return bool(self.given.label) or not self._is_own_label

    @property
    def _is_own_label(self) -> bool:
        manifest = self.manifest
        return (manifest.label.dtype, manifest.label.shape) == (manifest.x.dtype, manifest.x.shape)

    @property
    def classes(self) -> int:
        """How many there are; 0 where the label is no class."""
        manifest = self.manifest
        return manifest.output.shape[0] if manifest.loss in CLASSES else 0

    @property
    def column_type(self) -> type[np.float32 | np.int64]:
        """What features are read as: whole numbers keep all their digits where x is of them."""
        return np.float32 if self.manifest.x.dtype == "float32" else np.int64

    def is_label(self, number: float) -> bool:
        """Whether a finite number may be a label: a class, or any where there are none."""
        return not self.classes or (0 <= number < self.classes and float(number).is_integer())

    def no_class(self, label: object, where: str = "") -> str:
        """Why a label is none, as a sentence."""
        has = f"the model has {self.classes} classes, counted from 0"
        return f"label {label}{where}, but {has}"


def samples_of(
    x: Array,
    y: Array | None,
    fit: Fit,
    what: str,
    *,
    first: int = 0,
    windows: bool = False,
) -> Samples:
    """Shape and check what a source has read.

    Args:
        x: real numbers, shape (n, ...).
        y: labels, shape (n, ...); None: every sample is its own.
        fit: what they must fit.
        what: how a refusal calls the source.
        first: the number of the first sample.
        windows: whether x is (n, window, features): a model whose features come first gets it
            turned, see [input] layout.

    Raises:
        ValueError: they do not fit.
    """
    if not len(x):
        raise ValueError(f"{what}: has no samples; a window is {fit.given.window} readings long")
    given = inputs_of(x, fit.manifest.x, what, windows=windows, layout=fit.given.layout)
    if y is None:
        return Samples(given, given, first)
    if len(y) != len(x):
        raise ValueError(f"{what}: {len(x)} samples but {len(y)} labels")
    told = _typed(_shaped(y, fit.manifest.label, f"{what}: a label"), fit.manifest.label, what)
    if fit.classes:
        classes = told.astype(np.int64).reshape(-1)
        bad = (classes < 0) | (classes >= fit.classes)
        if bad.any():
            raise ValueError(f"{what}: {fit.no_class(classes[bad.argmax()], _at(bad))}")
    return Samples(given, told, first)


def inputs_of(
    x: Array, port: Port, what: str, *, windows: bool = False, layout: Layout = "auto"
) -> Array:
    """Shape x for its port; see `samples_of`. Raises ValueError: it does not fit."""
    if windows and x.ndim == 3 and _is_turned(x, port, layout, what):
        x = x.transpose(0, 2, 1)
    return _typed(_shaped(x, port, f"{what}: a sample"), port, what)


def split(samples: Samples, holdout: float) -> tuple[Samples, Samples]:
    """Part samples into those to train on and those held out: every k-th, k about 1 / holdout.

    A sample stays on its side whatever comes after it. The share is within [0, 1).
    """
    places = samples.first + np.arange(len(samples))
    held = np.floor((places + 1) * holdout) > np.floor(places * holdout)
    if not held.any():
        return samples, Samples(samples.x[:0], samples.y[:0])
    x, y = samples.x, samples.y
    mine, other = x[~held], x[held]
    if y is x:  # a sample that is its own label stays that
        return Samples(mine, mine, samples.first), Samples(other, other, samples.first)
    return Samples(mine, y[~held], samples.first), Samples(other, y[held], samples.first)


def _is_turned(x: Array, port: Port, layout: Layout, what: str) -> bool:
    """Whether the model takes the features of windows, shape (n, window, features), first."""
    if layout != "auto":
        return layout == "features-first"
    _, window, features = x.shape
    if tuple(d for d in port.shape if d != 1) != (features, window):
        return False
    if window == features:
        told = f"{window} readings of {features} features fit {list(port.shape)} either way"
        raise ValueError(f'{what}: {told}: say [input] layout = "window-first" or "features-first"')
    return True


def _at(bad: Any) -> str:
    """Where the first bad one of several is; a mask, shape (n, ...)."""
    rows = bad.reshape(len(bad), -1).any(axis=1)
    return f" at index {rows.argmax()}" if len(rows) > 1 else ""


def _shaped(array: Array, port: Port, what: str) -> Array:
    """Every example in the port's shape, where no axis is mistaken for another."""
    own, wanted = tuple(array.shape[1:]), port.shape
    plain, asked = (tuple(d for d in shape if d != 1) for shape in (own, wanted))
    if plain == asked or (port.size == np.prod(own, dtype=int) and 1 in {len(plain), len(asked)}):
        return array.reshape(len(array), *wanted)
    told = f"the model's {port.name!r} takes {list(wanted)}"
    remedy = "choose [input] features, window and layout so"
    raise ValueError(f"{what} has shape {list(own)}, but {told}; {remedy}")


def _typed(array: Array, port: Port, what: str) -> Array:
    if array.dtype.kind not in _REAL:
        raise ValueError(f"{what}: {port.name} is of type {array.dtype}: numbers are needed")
    dtype = np.dtype(port.dtype)
    if array.dtype == dtype and dtype.kind != "f":
        return np.ascontiguousarray(array)
    if array.dtype.kind == "f" and (bad := ~np.isfinite(array)).any():
        told = f"{what}: {port.name} holds NaN or infinity{_at(bad)}"
        raise ValueError(f"{told}: clean or drop those rows")
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit is found below
        typed = np.ascontiguousarray(array, dtype=dtype)
    if dtype.kind == "f":
        if (bad := ~np.isfinite(typed)).any():
            told = f"{what}: {port.name} holds numbers beyond float32{_at(bad)}"
            raise ValueError(f"{told}: scale them")
    elif (bad := typed != array).any():
        told = f"{array[bad][0]}{_at(bad)}"
        raise ValueError(f"{what}: {port.name} must be whole numbers of {port.dtype}, not {told}")
    return typed
