"""A Parquet file, or a folder of them, column by column. pyarrow is imported only here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from edge_agent.sources.columns import Columns, columns_of
from edge_agent.sources.samples import BYTES_MAX, Array
from schemas.errors import ConfigError
from schemas.inputs import InputOptions

_ROWS: Final = 65_536
"""Rows that are decoded at a time."""


def read_parquet(path: Path, given: InputOptions) -> tuple[Array, Array | None, Columns]:
    """Read features, float32, shape (n, features), and labels, float64, shape (n,).

    A folder's files, at any depth, are read in the order of their paths.

    Raises:
        ConfigError: pyarrow is not installed.
        ValueError: it cannot be read, a column is missing, or a cell is empty.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 - 40 MB that other sources do without
        from pyarrow import parquet  # noqa: PLC0415 - as above
    except ImportError as exc:
        remedy = "Parquet needs pyarrow: pip install 'fedmq[parquet]', or give a CSV or an .npz"
        raise ConfigError("data", remedy) from exc
    try:
        files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: has no *.parquet in it; check the path in --data")
        columns: Columns | None = None
        found: list[Array] = []
        size = 0
        for each in files:
            with parquet.ParquetFile(each) as file:
                columns = columns or _columns(pa, file.schema_arrow, given, each.name)
                for piece in _pieces(file, columns, each.name):
                    found.append(piece)
                    size += piece.nbytes
                    if size > BYTES_MAX:
                        told = f"{path.name}: more than {BYTES_MAX} bytes of numbers"
                        raise ValueError(f"{told}: take fewer rows or columns")
    except (OSError, pa.ArrowException) as exc:
        raise ValueError(f"{path}: cannot be read as Parquet: {exc}") from exc
    if columns is None or not any(map(len, found)):
        raise ValueError(f"{path}: has no rows")
    table = np.concatenate(found)
    width = len(columns.features)
    with np.errstate(over="ignore"):  # what float32 cannot hold is told where it is fitted
        x = table[:, :width].astype(np.float32)
    return x, table[:, columns.read.index(columns.label)] if columns.label else None, columns


def _columns(pa: Any, schema: Any, given: InputOptions, what: str) -> Columns:
    kinds = pa.types
    tests = (kinds.is_integer, kinds.is_floating, kinds.is_boolean, kinds.is_decimal)
    numeric = [field.name for field in schema if any(test(field.type) for test in tests)]
    return columns_of(list(schema.names), numeric, given, what)


def _pieces(file: Any, columns: Columns, what: str) -> Iterator[Array]:
    """Arrays of float64, shape (rows, columns read)."""
    names = file.schema_arrow.names
    for name in columns.read:
        if name not in names:
            raise ValueError(f"{what}: has no column {name!r}, the file before it has")
    for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns.read)):
        piece = np.empty((batch.num_rows, len(columns.read)))
        for place, name in enumerate(columns.read):
            column = batch.column(batch.schema.names.index(name))
            if column.null_count:
                told = f"column {name!r} has {column.null_count} empty cells"
                raise ValueError(f"{what}: {told}: fill them in or drop those rows")
            piece[:, place] = column.cast("float64").to_numpy(zero_copy_only=False)
        yield piece
