"""From what was trained to what is sent: delta plus residual, encoded; and what stays behind.

Error feedback after Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, Algorithm 1:

    u = delta + residual;   payload = encode(u);   residual' = u - decode(payload)

The residual is never decayed. Codecs that need none are given none and leave none. Pure.
"""

from dataclasses import dataclass
from math import isfinite

import numpy as np

from schemas.codecs import Ask, Codec
from schemas.delta import add_scaled, peak
from schemas.params import Params


@dataclass(frozen=True, slots=True)
class Compressed:
    """The payload to send, and the residual to keep (None when the codec needs none)."""

    payload: bytes
    residual: Params | None


def compress(
    delta: Params,
    residual: Params | None,
    codec: Codec,
    ask: Ask,
    rng: "np.random.Generator",
) -> Compressed:
    """Encode a delta, float32 of shape (size,). A residual of another size counts as none.

    Raises:
        ValueError: NaN or infinity in delta or in delta plus residual.
    """
    if not codec.error_feedback or (residual is not None and residual.size != delta.size):
        residual = None
    vector = delta if residual is None else delta + residual
    if not isfinite(peak(vector)):
        msg = "NaN or infinity after training; lower train.learning_rate"
        raise ValueError(msg)
    if not codec.error_feedback:
        return Compressed(codec.encode(vector, ask, rng), None)
    payload = codec.encode(vector, ask, rng)
    left = vector.copy()
    add_scaled(left, codec.decode(memoryview(payload), vector.size), -1.0)
    return Compressed(payload, left)
