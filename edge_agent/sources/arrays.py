"""Arrays `x` and `y` of an .npz file, or of the user's own function."""

from collections.abc import Callable
from lzma import LZMAError
from pathlib import Path
from struct import error as StructError  # noqa: N812 - as below
from typing import Any, Final
from zipfile import BadZipFile
from zlib import error as ZlibError  # noqa: N812 - zlib's name says nothing once it is imported

import numpy as np
from numpy.lib.npyio import NpzFile

from edge_agent.importing import imported
from edge_agent.sources.samples import BYTES_MAX, Array
from schemas.errors import ConfigError

UNREADABLE: Final = (
    AttributeError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    BadZipFile,
    LZMAError,
    MemoryError,  # of a header that promises more than there is room for
    RuntimeError,  # zipfile's, of encryption and of compressions that it does not know
    StructError,
    ZlibError,
)
"""What numpy and zipfile raise on a file that is no .npz of plain arrays."""

_REMEDY: Final = "write it with numpy.savez(file, x=features, y=labels)"


def read_npz(path: Path) -> tuple[Array, Array | None]:
    """Read `x`, shape (n, ...), and `y`, if it is there. Pickled arrays are refused.

    Raises:
        ValueError: it cannot be read, has no `x`, or holds more than BYTES_MAX.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _xy(arrays)
    except OSError as exc:
        told = f"{path}: {exc.strerror or exc}; check the path in --data"
        raise ValueError(f"{told}, or {_REMEDY}") from exc
    except UNREADABLE as exc:
        why = str(exc) or type(exc).__name__
        told = f"{path.name}: not an .npz of plain arrays of at most {BYTES_MAX} bytes ({why})"
        raise ValueError(f"{told}; {_REMEDY}") from exc


def _xy(arrays: Any) -> tuple[Array, Array | None]:
    if not isinstance(arrays, NpzFile) or "x" not in arrays:
        raise ValueError("there is no array 'x'")
    if arrays.zip is not None and sum(e.file_size for e in arrays.zip.filelist) > BYTES_MAX:
        raise ValueError("it is larger")
    return _rows(arrays["x"], arrays["y"] if "y" in arrays else None)  # noqa: SIM401 - numpy 1.26


def _rows(x: Array, y: Array | None) -> tuple[Array, Array | None]:
    """Both again. Raises ValueError: one of them is a single number."""
    if x.ndim == 0 or (y is not None and y.ndim == 0):
        raise ValueError(f"{'y' if x.ndim else 'x'} is a single number, not one a sample")
    return x, y


def call(path: str) -> tuple[Array, Array | None]:
    """Call the user's `module:function` -> (x, y); y may be None.

    Raises:
        ConfigError: there is no such function.
        ValueError: what it gives is no pair of arrays, or it fails.
    """
    function: Callable[[], Any] = imported("data", path)
    if not callable(function):
        raise ConfigError("data", f"{path!r} is no function: write one that returns (x, y)")
    try:
        given = function()
    except Exception as exc:
        raise ValueError(f"{path} has failed: {type(exc).__name__}: {exc}") from exc
    if not (isinstance(given, tuple | list) and len(given) == 2):
        raise ValueError(f"{path} must return (x, y), with None for no labels")
    x, y = given
    try:
        return _rows(np.asarray(x), None if y is None else np.asarray(y))
    except Exception as exc:
        raise ValueError(
            f"{path} must return two arrays: {str(exc) or type(exc).__name__}"
        ) from exc
