"""A CSV file with a header: read in pieces, so that little more than the numbers is ever held."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from io import TextIOBase
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.sources.columns import Columns, columns_of
from edge_agent.sources.readings import FLOAT32_MAX
from edge_agent.sources.samples import BYTES_MAX, Array, Fit

LINE_MAX: Final = 1 << 20
"""Characters of a line, at most."""

_PIECE: Final = 4096
"""Rows that are held as Python's own numbers."""

_DELIMITERS: Final = ",;\t"
_REMEDY: Final = "fill it in, drop the row, or leave the column out of [input] features"

_FINITE: Final = "finite number of float32"

_INT64: Final = np.iinfo(np.int64)


def read_csv(path: Path, fit: Fit) -> tuple[Array, Array | None, Columns]:
    """Read features, shape (n, features), and labels, float64, shape (n,).

    The delimiter is a comma, a semicolon or a tab, whichever the header has most of. Without
    [input] features those columns count that hold a number in the first row, or nothing.

    Args:
        path: of the file.
        fit: what is read of it; features are of its `column_type`.

    Raises:
        ValueError: it cannot be read, a column is missing, a cell is no finite number or a label
            none of the model's classes; names line and column.
    """
    what = path.name
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(file, fit, what)
    except OSError as exc:
        raise ValueError(f"{path}: {exc.strerror or exc}; check the path in --data") from exc
    except UnicodeDecodeError as exc:
        raise ValueError(f"{what}: is not text in UTF-8 ({exc.reason}); convert it") from exc


def _read(file: TextIOBase, fit: Fit, what: str) -> tuple[Array, Array | None, Columns]:
    lines = _Lines(file, what)
    first = next(lines, "")
    delimiter = max(_DELIMITERS, key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    try:
        rows = _full(csv.reader(lines, delimiter=delimiter), header, lines)
        second = next(rows, None)
        if second is None:
            raise ValueError(f"{what}: needs a header and at least one row below it")
        numeric = [n for n, cell in zip(header, second, strict=True) if _may_be_number(n, cell)]
        columns = columns_of(header, numeric, fit.given, what)
        return *_table(chain([second], rows), header, columns, fit, lines), columns
    except csv.Error as exc:
        raise ValueError(f"{lines}: {exc}; is it a CSV?") from exc


def _full(rows: Iterable[list[str]], header: Sequence[str], lines: "_Lines") -> Iterator[list[str]]:
    """The rows that are not blank, each as long as the header."""
    for row in rows:
        if not row or (len(row) == 1 < len(header) and not row[0].strip()):
            continue
        if len(row) != len(header):
            told = f"has {len(row)} cells, the header {len(header)}"
            raise ValueError(f"{lines}: {told}; is a cell with a delimiter quoted?")
        yield row


def _table(
    rows: Iterable[Sequence[str]],
    header: Sequence[str],
    columns: Columns,
    fit: Fit,
    lines: "_Lines",
) -> tuple[Array, Array | None]:
    """Features and labels of all rows."""
    places, label = [header.index(name) for name in columns.features], columns.label
    label_at = header.index(label) if label else 0
    is_whole = fit.column_type is np.int64
    number, kind = (_whole, "whole number of int64") if is_whole else (_single, _FINITE)
    x, y = _Pieces(fit.column_type), _Pieces(np.float64)
    for row in rows:
        numbers = [number(row[place]) for place in places]
        if None in numbers:
            at = numbers.index(None)
            told = f"column {columns.features[at]!r}: {row[places[at]][:40]!r}"
            raise ValueError(f"{lines}, {told} is no {kind}; {_REMEDY}")
        x.add(numbers)
        if label:
            target = _number(row[label_at])
            if target is None:
                cell = f"column {label!r}: {row[label_at][:40]!r}"
                raise ValueError(f"{lines}, {cell} is no finite number; fill it in or drop the row")
            if not fit.is_label(target):
                raise ValueError(f"{lines}, column {label!r}: {fit.no_class(f'{target:g}')}")
            y.add([target])
    return x.array(len(places)), y.array(1)[:, 0] if label else None


class _Lines:
    """The lines of a file, none of them too long; as text it says where it is."""

    def __init__(self, file: TextIOBase, what: str) -> None:
        self._file, self._what = file, what
        self._number = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._file.readline(LINE_MAX)
        if not line:
            raise StopIteration
        self._number += 1
        if len(line) == LINE_MAX:
            raise ValueError(f"{self}: is longer than {LINE_MAX} characters")
        return line

    def __str__(self) -> str:
        return f"{self._what} line {self._number}"


def _may_be_number(name: str, cell: str) -> bool:
    """Whether a column counts by its first cell: a number, or a hole that is told of later."""
    if not cell.strip():
        return bool(name)  # a delimiter that ends every line makes a column without a name
    with suppress(ValueError):
        float(cell)
        return True
    return False


def _number(cell: str) -> float | None:
    """The finite number that a cell holds, if it holds one; Python's own 1_000 is none."""
    with suppress(ValueError):
        number = float(cell)
        return number if isfinite(number) and "_" not in cell else None
    return None


def _single(cell: str) -> float | None:
    """The number of float32 that a cell holds, if it holds one."""
    number = _number(cell)
    return None if number is None or abs(number) > FLOAT32_MAX else number


def _whole(cell: str) -> int | None:
    """The whole number of int64 that a cell holds, if it holds one, with all its digits."""
    number = _number(cell)
    if number is None or not number.is_integer():
        return None
    with suppress(ValueError):
        exact = int(cell)
        return exact if _INT64.min <= exact <= _INT64.max else None
    return int(number) if _INT64.min <= int(number) <= _INT64.max else None


class _Pieces:
    """Rows of numbers, laid into arrays as they come."""

    def __init__(self, dtype: type[np.floating | np.int64]) -> None:
        self._dtype = dtype
        self._rows: list[Sequence[float | None]] = []
        self._arrays: list[Array] = []
        self._bytes = 0

    def add(self, row: Sequence[float | None]) -> None:
        self._rows.append(row)
        if len(self._rows) == _PIECE:
            self._lay()

    def _lay(self) -> None:
        self._arrays.append(np.array(self._rows, self._dtype))
        self._bytes += self._arrays[-1].nbytes
        self._rows = []
        if self._bytes > BYTES_MAX:
            raise ValueError(f"more than {BYTES_MAX} bytes of numbers: take fewer rows or columns")

    def array(self, width: int) -> Array:
        """All rows, shape (n, width); there is at least one."""
        if self._rows:
            self._lay()
        return np.concatenate(self._arrays).reshape(-1, width)
