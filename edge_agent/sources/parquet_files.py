"""A Parquet file, or a folder of them, column by column. pyarrow is imported only here."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_agent.sources.columns import Columns, columns_of
from edge_agent.sources.samples import BYTES_MAX, Array, Fit
from schemas.errors import ConfigError
from schemas.inputs import InputOptions

Table: TypeAlias = tuple[Array, Array | None]
"""Features and labels."""

_ROWS: Final = 65_536
"""Rows that are decoded at a time."""


def read_parquet(path: Path, fit: Fit) -> tuple[list[Table], Columns]:
    """Read a table of each file: features, shape (n, features), and labels, float64, shape (n,).

    A folder's files, at any depth, are read in the order of their paths.

    Args:
        path: of a file or a folder.
        fit: what is read of it; features are of its `column_type`.

    Raises:
        ConfigError: pyarrow is not installed.
        ValueError: it cannot be read, a column is missing, a cell is empty or a label none of the
            model's classes.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - 40 MB that other sources do without
        from pyarrow import parquet  # noqa: PLC0415 - as above
    except ImportError as exc:
        remedy = "Parquet needs pyarrow: pip install 'fedmq[parquet]', or give a CSV or an .npz"
        raise ConfigError("data", remedy) from exc
    columns: Columns | None = None
    tables: list[Table] = []
    size = 0
    try:
        for each in _files(path):
            with parquet.ParquetFile(each) as file:
                columns = columns or _columns(pa, file.schema_arrow, fit.given, each.name)
                pieces: list[Table] = []
                for x, y in _pieces(pa, file, columns, fit, each.name):
                    pieces.append((x, y))
                    size += x.nbytes + (0 if y is None else y.nbytes)
                    if size > BYTES_MAX:
                        told = f"{path.name}: more than {BYTES_MAX} bytes of numbers"
                        raise ValueError(f"{told}: take fewer rows or columns")
            if pieces:
                tables.append(together(pieces))
    except (OSError, pa.ArrowException) as exc:
        raise ValueError(f"{path}: cannot be read as Parquet: {exc}") from exc
    if columns is None or not tables:
        raise ValueError(f"{path}: has no rows")
    return tables, columns


def together(tables: Sequence[Table]) -> Table:
    """All rows of tables, at least one, below each other."""
    if len(tables) == 1:
        return tables[0]
    labels = [y for _, y in tables if y is not None]
    return np.concatenate([x for x, _ in tables]), np.concatenate(labels) if labels else None


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix.lower() == ".parquet")
    if not found:
        raise ValueError(f"{path}: has no *.parquet in it; check the path in --data")
    return found


def _columns(pa: Any, schema: Any, given: InputOptions, what: str) -> Columns:
    kinds = pa.types
    tests = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal)
    numeric = [field.name for field in schema if any(test(field.type) for test in tests)]
    return columns_of(list(schema.names), numeric, given, what)


def _pieces(pa: Any, file: Any, columns: Columns, fit: Fit, what: str) -> Iterator[Table]:
    names = file.schema_arrow.names
    for name in columns.read:
        if name not in names:
            raise ValueError(f"{what}: has no column {name!r}, the file before it has")
    row = 0
    for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns.read)):
        x = np.empty((batch.num_rows, len(columns.features)), fit.column_type)
        with np.errstate(over="ignore"):  # what float32 cannot hold is told where it is fitted
            for place, name in enumerate(columns.features):
                x[:, place] = _cells(pa, batch, name, fit.column_type, what)
        y = _cells(pa, batch, columns.label, np.float64, what) if columns.label else None
        if y is not None and fit.classes:
            bad = next((at for at, each in enumerate(y.tolist()) if not fit.is_label(each)), None)
            if bad is not None:
                told = fit.no_class(f"{y[bad]:g}", f" at index {row + bad}")
                raise ValueError(f"{what}, column {columns.label!r}: {told}")
        row += batch.num_rows
        yield x, y


def _cells(pa: Any, batch: Any, name: str, dtype: type[np.number], what: str) -> NDArray[Any]:
    """A column of a batch, as float64 or int64."""
    column = batch.column(batch.schema.names.index(name))
    if column.null_count:
        told = f"column {name!r} has {column.null_count} empty cells"
        raise ValueError(f"{what}: {told}: fill them in or drop those rows")
    is_whole = dtype is np.int64
    try:
        cast = column.cast("int64") if is_whole else column.cast("float64", safe=False)
    except pa.ArrowInvalid as exc:
        told = f"column {name!r} holds more than whole numbers of int64, which the model takes"
        raise ValueError(f"{what}: {told} ({exc})") from exc
    found: NDArray[Any] = cast.to_numpy(zero_copy_only=False)
    return found
