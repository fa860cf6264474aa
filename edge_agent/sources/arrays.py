"""Arrays `x` and `y` of an .npz file, or of the user's own function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as ZlibError  # noqa: N812 - zlib's name says nothing once it is imported

import numpy as np
from numpy.lib.npyio import NpzFile

from edge_agent.importing import imported
from edge_agent.sources.samples import BYTES_MAX, Array
from schemas.errors import ConfigError

_REMEDY = "write it with numpy.savez(file, x=features, y=labels)"


def read_npz(path: Path) -> tuple[Array, Array | None]:
    """Read `x`, shape (n, ...), and `y`, if it is there. Pickled arrays are refused.

    Raises:
        ValueError: it cannot be read, has no `x`, or holds more than BYTES_MAX.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _xy(arrays)
    except OSError as exc:
        raise ValueError(f"{path}: {exc.strerror or exc}; check the path in --data") from exc
    except (AttributeError, TypeError, ValueError, EOFError, BadZipFile, ZlibError) as exc:
        told = f"{path.name}: not an .npz of plain arrays of at most {BYTES_MAX} bytes ({exc})"
        raise ValueError(f"{told}; {_REMEDY}") from exc


def _xy(arrays: Any) -> tuple[Array, Array | None]:
    if not isinstance(arrays, NpzFile) or "x" not in arrays:
        raise ValueError("there is no array 'x'")
    if arrays.zip is not None and sum(e.file_size for e in arrays.zip.filelist) > BYTES_MAX:
        raise ValueError("it is larger")
    return arrays["x"], arrays["y"] if "y" in arrays else None  # noqa: SIM401 - numpy 1.26: no get


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
    return np.asarray(x), None if y is None else np.asarray(y)
