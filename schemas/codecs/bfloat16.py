"""Scales in two bytes: the upper half of a float32, little-endian. Positive or zero.

8 bits of exponent, so that any float32 has its scale, and 8 bits of precision. What becomes of the
lower half is the encoder's choice: rounded up where nothing may be clipped, drawn where the mean
must be right, to the nearest where a residual takes the rest.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params

BYTES: Final = 2

_LARGEST: Final = 0x7F7F_0000
"""The largest finite one, as the bits of a float32."""


def _bits(scales: NDArray[Any]) -> NDArray[np.uint32]:
    bits = scales.astype(np.float32).view(np.uint32)
    return np.minimum(bits, np.uint32(_LARGEST))


def round_up(scales: NDArray[Any]) -> NDArray[np.uint16]:
    """The smallest bfloat16 that is not below: for scales >= 0 of any float type."""
    return ((_bits(scales) + np.uint32(0xFFFF)) >> np.uint32(16)).astype("<u2")


def nearest(scales: NDArray[Any]) -> NDArray[np.uint16]:
    """The nearest bfloat16, a half upwards."""
    return ((_bits(scales) + np.uint32(0x8000)) >> np.uint32(16)).astype("<u2")


def drawn(scales: NDArray[Any], rng: "np.random.Generator") -> NDArray[np.uint16]:
    """One of the two neighbours, so that the mean over draws is the scale."""
    bits = _bits(scales)
    below = rng.integers(1 << 16, size=bits.shape, dtype=np.uint32)
    return ((bits + below) >> np.uint32(16)).astype("<u2")


def widen(scales: NDArray[np.uint16]) -> Params:
    """As float32, exactly."""
    return (scales.astype(np.uint32) << np.uint32(16)).view(np.float32)


def read(payload: memoryview) -> Params:
    """The scales of which `payload` consists, as float32. Raises WireError when one is negative.

    Infinity and NaN pass: admission sees what they make.
    """
    scales = np.frombuffer(payload, dtype="<u2")
    if scales.size and int(scales.max()) > 0x7FFF:
        raise WireError(Reason.BAD_NUMBER, "a negative scale")
    return widen(scales)
