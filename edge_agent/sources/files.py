"""Samples from what a user names: a CSV, an .npz, Parquet, or a function of his own."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.sources.arrays import call, read_npz
from edge_agent.sources.csv_file import read_csv
from edge_agent.sources.parquet_files import read_parquet
from edge_agent.sources.samples import Array, Fit, Samples, samples_of
from edge_agent.sources.scaling import features_in, scale_of
from edge_agent.sources.windows import windowed
from schemas.errors import ConfigError

KINDS = "FILE.csv, FILE.npz, FILE.parquet, a folder of those, MODULE:FUNCTION or mqtt:TOPIC"


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
    if path.suffix in {".csv", ".npz", ".parquet"} or path.is_dir():
        if not path.exists():
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
    path, given = Path(what), fit.given
    if path.suffix == ".npz":
        return Raw(*read_npz(path))
    is_table = path.suffix in {".csv", ".parquet"} or path.is_dir()
    if is_table and fit.labelled and not given.label:
        raise ConfigError("label", "must be named: --label COLUMN, of those that the data has")
    if path.suffix == ".csv":
        x, y, columns = read_csv(path, given)
    elif path.suffix == ".parquet" or path.is_dir():
        x, y, columns = read_parquet(path, given)
    else:
        return Raw(*call(what))
    x, y = windowed(x, y, given)
    return Raw(x, y, columns.features)


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

    Raises:
        ValueError: they are no numbers, or of another number than the scale.
        OSError: the scale cannot be kept.
    """
    if fit.given.normalise == "none" or fit.manifest.x.dtype != "float32":
        return x
    if x.dtype.kind not in "biuf" or not np.isfinite(x).all():
        raise ValueError(f"{what}: x holds NaN, infinity or text: clean or drop those rows")
    scale = scale_of(fit.given, scale_file, features, x)
    return x if scale is None else scale.applied(x, per=features_in(x))
