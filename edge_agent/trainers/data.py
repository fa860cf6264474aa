"""Examples from an .npz file with the keys `x` and `y`: the only door to a disk in this package.

Refuses pickled arrays. Every ValueError names the file and the remedy.
"""

from pathlib import Path
from zipfile import BadZipFile
from zlib import error as ZlibError  # noqa: N812 - zlib's name says nothing once it is imported

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import ArrayLike, NDArray

from edge_agent.trainers.examples import Examples, checked_examples

_REMEDY = "write it with numpy.savez(file, x=features, y=labels)"


def examples_of(features: ArrayLike | None, labels: ArrayLike | None, data: str) -> Examples:
    """Take the arrays, or read the file when one is named. Raises ValueError."""
    if data and features is None and labels is None:
        return load_examples(data)
    if data or features is None or labels is None:
        raise ValueError("give features and labels, or data=FILE.npz (--option data=FILE.npz)")
    return checked_examples(features, labels)


def load_examples(file: str) -> Examples:
    """Read `x`, shape (n, ...), and `y`, shape (n,), from an .npz file. Raises ValueError."""
    try:
        x, y = _arrays(file)
    except OSError as exc:
        raise ValueError(f"{file}: {exc.strerror or exc}; check the path in data=") from exc
    except (ValueError, EOFError, BadZipFile, ZlibError) as exc:
        raise ValueError(f"{file}: not an .npz of plain arrays; {_REMEDY}") from exc
    except KeyError as exc:
        raise ValueError(f"{file}: has no array {exc.args[0]!r}; {_REMEDY}") from exc
    try:
        return checked_examples(x, y)
    except ValueError as exc:
        raise ValueError(f"{file}: {exc}") from exc


def _arrays(file: str) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    with Path(file).open("rb") as stream:  # numpy leaves a damaged file of its own opening open
        arrays = np.load(stream, allow_pickle=False)
        if not isinstance(arrays, NpzFile):
            raise ValueError("a single array")  # noqa: TRY004 - the file's fault, not a caller's
        for key in ("x", "y"):
            if key not in arrays:
                raise KeyError(key)
        return arrays["x"], arrays["y"]
