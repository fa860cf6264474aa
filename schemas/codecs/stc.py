"""Sparse ternary compression: the largest coordinates, each as the mean of their magnitudes.

Sattler et al., "Robust and Communication-Efficient Federated Learning from Non-i.i.d. Data", 2019,
Algorithm 1; their Golomb code of the gaps is a Rice code here. Biased: error feedback keeps the
rest on the device. k is the density's share; under a budget as many as fit, but no more than make
the error smaller: one magnitude for all is the wrong one for most of them. Zeros are left out.

The layout is that of `schemas.codecs.gaps`: the scale is the mean magnitude, to the nearest; the
first gap is the first index, each later one the distance to the index before, less 1, so that none
can be repeated; there are k signs. Coordinate i of the delta is the scale, or minus that.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.codecs import bfloat16, gaps
from schemas.codecs.codec import Ask, Codec
from schemas.codecs.largest import largest, largest_that_fit
from schemas.codecs.length import needs
from schemas.delta import Sparse
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params


def _between(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.diff(indices, prepend=-1) - 1


def _length(indices: NDArray[np.int64]) -> int:
    return -(-gaps.count_bits(_between(indices), indices.size) // 8)


def _chosen(vector: Params, ask: Ask) -> NDArray[np.int64]:
    """The coordinates to send: none that is zero."""
    least_bits = 2  # of a coordinate: one of its gap, one for its sign
    if ask.budget:
        fitting = largest_that_fit(vector, 8 * ask.budget // least_bits, ask.budget, _length)
        best = _of_least_error(vector[fitting])
        return fitting if best == fitting.size else largest(vector, best)
    count = max(1, min(vector.size, round(ask.options.density * vector.size)))
    return largest(vector, min(count, int(np.count_nonzero(vector))))


def _of_least_error(values: Params) -> int:
    """How many of the largest values, sent as their mean, are the most of the vector.

    k of the sum of magnitudes s take s^2 / k off the squared error.
    """
    falling = -np.sort(-np.abs(values).astype(np.float64))
    taken = np.square(np.cumsum(falling)) / np.arange(1, values.size + 1)
    return int(np.argmax(taken)) + 1


def _encode(vector: Params, ask: Ask, _rng: "np.random.Generator") -> bytes:
    needs("stc", gaps.least_bytes(vector.size), ask)
    if not vector.any():
        return gaps.NOTHING
    indices = _chosen(vector, ask)
    values = vector[indices]
    mean = np.abs(values).mean(dtype=np.float64, keepdims=True)
    return gaps.write(bfloat16.nearest(mean), _between(indices), values < 0)


def _decode(payload: memoryview, size: int) -> Sparse:
    opened = gaps.read(payload, size, size)
    indices = opened.sums + np.arange(opened.sums.size)
    if indices.size and indices[-1] >= size:
        raise WireError(Reason.BAD_INDEX, f"index {indices[-1]} of {size}")
    return Sparse(indices, gaps.read_values(opened, indices.size))


STC: Final = Codec(
    codec_id=5,
    name="stc",
    error_feedback=True,
    sparse=True,
    encode=_encode,
    decode=_decode,
    least_bytes=gaps.least_bytes,
)
