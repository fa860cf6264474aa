"""The coordinates of largest magnitude: top-k, for the codecs that keep the rest as a residual."""

from bisect import bisect_right
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from schemas.params import Params


def largest(vector: Params, count: int) -> NDArray[np.int64]:
    """Indices of the `count` largest magnitudes, ascending; ties go to the lower index."""
    if count >= vector.size:
        return np.arange(vector.size)
    magnitudes = np.abs(vector)
    border = np.partition(magnitudes, vector.size - count)[vector.size - count]
    above = np.flatnonzero(magnitudes > border)
    level = np.flatnonzero(magnitudes == border)[: count - above.size]
    return np.sort(np.concatenate([above, level]))


def largest_that_fit(
    vector: Params, most: int, budget: int, length: Callable[[NDArray[np.int64]], int]
) -> NDArray[np.int64]:
    """As many of the largest as fit, at least one; zeros are left out. Indices, ascending.

    Args:
        vector: not all zero.
        most: never more than these: nobody need look further.
        budget: bytes.
        length: indices, ascending -> bytes; never falls when one more is sent.
    """
    found = largest(vector, min(most, int(np.count_nonzero(vector))))
    ranked = found[np.argsort(-np.abs(vector[found]), kind="stable")]
    counts = range(1, found.size + 1)
    fitting = bisect_right(counts, budget, key=lambda count: length(np.sort(ranked[:count])))
    return np.sort(ranked[: max(1, fitting)])
