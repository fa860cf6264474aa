"""A CSV file with a header: read in pieces, so that little more than the numbers is ever held."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from io import TextIOBase
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np

from edge_agent.sources.columns import Columns, columns_of
from edge_agent.sources.samples import BYTES_MAX, Array
from schemas.inputs import InputOptions

LINE_MAX: Final = 1 << 20
"""Characters of a line, at most."""

_PIECE: Final = 4096
"""Rows that are held as Python's own numbers."""

_DELIMITERS: Final = ",;\t"
_REMEDY: Final = "fill it in or drop the row"


def read_csv(path: Path, given: InputOptions) -> tuple[Array, Array | None, Columns]:
    """Read features, float32, shape (n, features), and labels, float64, shape (n,).

    The delimiter is a comma, a semicolon or a tab, whichever the header has most of. Without
    [input] features those columns count that hold a number in the first row.

    Raises:
        ValueError: it cannot be read, a column is missing, or a cell is no finite number; names
            line and column.
    """
    what = path.name
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _read(file, given, what)
    except OSError as exc:
        raise ValueError(f"{path}: {exc.strerror or exc}; check the path in --data") from exc
    except UnicodeDecodeError as exc:
        raise ValueError(f"{what}: is not text in UTF-8 ({exc.reason}); convert it") from exc


def _read(file: TextIOBase, given: InputOptions, what: str) -> tuple[Array, Array | None, Columns]:
    lines = _lines(file, what)
    first = next(lines, "")
    delimiter = max(_DELIMITERS, key=first.count)
    header = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
    rows = csv.reader(lines, delimiter=delimiter)
    try:
        second = next(rows, None)
        if second is None:
            raise ValueError(f"{what}: needs a header and at least one row below it")
        numeric = [name for name, cell in zip(header, second, strict=False) if _is_number(cell)]
        columns = columns_of(header, numeric, given, what)
        return *_table(
            chain([second], rows), lambda: rows.line_num + 1, header, columns, what
        ), columns
    except csv.Error as exc:
        raise ValueError(f"{what} line {rows.line_num + 1}: {exc}; is it a CSV?") from exc


def _table(
    rows: Iterable[Sequence[str]],
    line: Callable[[], int],
    header: Sequence[str],
    columns: Columns,
    what: str,
) -> tuple[Array, Array | None]:
    """Features and labels of all rows; `line` tells where the reader is."""
    width, places = len(columns.features), [header.index(name) for name in columns.read]
    label = columns.read.index(columns.label) if columns.label else 0
    x, y = _Pieces(), _Pieces(np.float64)
    for row in rows:
        if not row:  # an empty line
            continue
        if len(row) != len(header):
            told = f"has {len(row)} cells, the header {len(header)}"
            raise ValueError(f"{what} line {line()}: {told}; is a cell with a delimiter quoted?")
        numbers = [_number(row[place]) for place in places]
        if None in numbers:
            place = numbers.index(None)
            told = f"column {columns.read[place]!r}: {row[places[place]][:40]!r}"
            raise ValueError(f"{what} line {line()}, {told} is no finite number; {_REMEDY}")
        x.add(numbers[:width])
        if columns.label:
            y.add(numbers[label : label + 1])
    return x.array(width, what), y.array(1, what)[:, 0] if columns.label else None


def _lines(file: TextIOBase, what: str) -> Iterator[str]:
    number = 0
    while line := file.readline(LINE_MAX):
        number += 1
        if len(line) == LINE_MAX:
            raise ValueError(f"{what} line {number}: is longer than {LINE_MAX} characters")
        yield line


def _is_number(cell: str) -> bool:
    with suppress(ValueError):
        float(cell)
        return True
    return False


def _number(cell: str) -> float | None:
    """The finite number that a cell holds, if it holds one."""
    with suppress(ValueError):
        number = float(cell)
        return number if isfinite(number) else None
    return None


class _Pieces:
    """Rows of numbers, laid into arrays as they come."""

    def __init__(self, dtype: type[np.floating] = np.float32) -> None:
        self._dtype = dtype
        self._rows: list[Sequence[float | None]] = []
        self._arrays: list[Array] = []
        self._bytes = 0

    def add(self, row: Sequence[float | None]) -> None:
        self._rows.append(row)
        if len(self._rows) == _PIECE:
            self._lay()

    def _lay(self) -> None:
        with np.errstate(over="ignore"):  # what float32 cannot hold is told where it is fitted
            self._arrays.append(np.array(self._rows, self._dtype))
        self._bytes += self._arrays[-1].nbytes
        self._rows = []
        if self._bytes > BYTES_MAX:
            raise ValueError(f"more than {BYTES_MAX} bytes of numbers: take fewer rows or columns")

    def array(self, width: int, what: str) -> Array:
        """All rows, shape (n, width)."""
        if self._rows:
            self._lay()
        if not self._arrays:
            raise ValueError(f"{what}: has no rows")
        return np.concatenate(self._arrays).reshape(-1, width)
