"""Samples from what a user names: a CSV, an .npz, Parquet, or a function of his own."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.sources.arrays import call, read_npz
from edge_agent.sources.csv_file import read_csv
from edge_agent.sources.parquet_files import Table, read_parquet, together
from edge_agent.sources.samples import BYTES_MAX, Array, Fit, Samples, samples_of
from edge_agent.sources.scaling import Measured, Scale, features_in, kept_scale, scale_of
from edge_agent.sources.windows import samples_in, windowed
from schemas.errors import ConfigError
from schemas.inputs import InputOptions

KINDS: Final = (
    "FILE.csv, FILE.npz, FILE.parquet, a folder of Parquet, MODULE:FUNCTION or mqtt:TOPIC"
)

_FILES: Final = frozenset({".csv", ".npz", ".parquet"})
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")
"""What a path of Windows begins with: no module has a name of one letter and a separator."""


@dataclass(frozen=True, slots=True)
class Raw:
    """What was read, before it is scaled and shaped.

    Attributes:
        x: shape (n, ..., features).
        y: labels, shape (n, ...); None: every sample is its own.
        features: their names, if they have any.
    """

    x: Array
    y: Array | None
    features: tuple[str, ...] = ()


def check_data(what: str) -> None:
    """Refuse what could never be read, before anything is fetched. Raises ConfigError."""
    path = Path(what)
    if path.is_dir():
        return
    if path.suffix.lower() in _FILES or _DRIVE.match(what):
        if not path.exists() or path.suffix.lower() not in _FILES:
            raise ConfigError("data", f"{what!r} does not exist; name {KINDS}")
    elif ":" not in what:
        raise ConfigError("data", f"{what!r} is not understood; name {KINDS}")


def read(what: str, fit: Fit) -> Raw:
    """Read whatever is named, and cut tables into windows.

    Raises:
        ConfigError: it is of no kind that is understood, or needs a library that is not here.
        ValueError: it cannot be read; names the place and the remedy.
    """
    check_data(what)
    path = Path(what)
    kind = ".parquet" if path.is_dir() else path.suffix.lower()
    if kind == ".npz":
        return Raw(*read_npz(path))
    if kind not in _FILES:
        return Raw(*call(what))
    if fit.labelled and not fit.given.label:
        raise ConfigError("label", "must be named: --label COLUMN, of those that the data has")
    if kind == ".csv":
        x, y, columns = read_csv(path, fit)
        tables: Sequence[Table] = [(x, y)]
    else:
        tables, columns = read_parquet(path, fit)
    x, y = _cut(tables, fit.given, what)
    return Raw(x, y, columns.features)


def _cut(tables: Sequence[Table], given: InputOptions, what: str) -> Table:
    """The samples of every table: no window spans two. Raises ValueError: they are too large."""
    count = sum(samples_in(len(x), given) for x, _ in tables)
    x, _ = tables[0]
    size = count * given.window * x.shape[1] * x.itemsize
    if size > BYTES_MAX:
        told = f"{count} windows take {size} bytes, more than {BYTES_MAX}"
        raise ValueError(f"{what}: {told}: choose a larger stride in [input], or fewer rows")
    return together([windowed(x, y, given) for x, y in tables])


def fitted(raw: Raw, fit: Fit, scale_file: Path, what: str, *, first: int = 0) -> Samples:
    """Scale as the task asks, and shape for the ports.

    Args:
        raw: what was read.
        fit: what it must fit.
        scale_file: where the device keeps its own scale.
        what: how a refusal calls it.
        first: the number of the first sample.

    Raises:
        ValueError: it does not fit.
        OSError: the scale cannot be kept.
    """
    x, y = raw.x, raw.y
    if y is None and fit.labelled:
        raise ValueError(f"{what}: there are no labels: give an array y beside x")
    if len(x):
        x = scaled(x, fit, scale_file, raw.features, what)
    return samples_of(x, y, fit, what, first=first, windows=bool(raw.features))


def scaled(x: Array, fit: Fit, scale_file: Path, features: tuple[str, ...], what: str) -> Array:
    """Features in the task's scale: x itself where there is none, or it is of whole numbers.

    A device's own scale is of one source, its features, their shape and dtype: of others it is
    measured anew.

    Raises:
        ValueError: they are no numbers, of another number than the scale, or too few for one.
        OSError: the scale cannot be kept.
    """
    if fit.given.normalise == "none" or fit.manifest.x.dtype != "float32":
        return x
    if x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise ValueError(f"{what}: x holds NaN, infinity or text: clean or drop those rows")
    scale = scale_of(fit.given, scale_file, Measured.of(what, features, x), x)
    return x if scale is None else scale.applied(x, per=features_in(x))


def known_scale(
    x: Array, fit: Fit, scale_file: Path, features: tuple[str, ...], what: str
) -> Scale | None:
    """The scale that `scaled` has for such samples, where it need not be measured first."""
    if fit.given.normalise == "none" or fit.manifest.x.dtype != "float32":
        return None
    return kept_scale(fit.given, scale_file, Measured.of(what, features, x))
