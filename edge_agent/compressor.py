"""From what was trained to what is sent: delta plus residual, encoded; and what stays behind.

Error feedback after Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, Algorithm 1:

    u = delta + residual;   payload = encode(u);   residual' = u - decode(payload)

The residual is never decayed. Codecs that need none are given none and leave none. What an update
that is refused has taken out of it comes back by rolling it back, or, where few local steps make a
delta, by adding it again (docs/decisions/0017). Pure.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Final

import numpy as np

from schemas.codecs import Ask, Codec, codec_by_id
from schemas.delta import add_scaled, peak
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params
from schemas.task import TrainOptions
from schemas.wire import decode_update

FEW_STEPS: Final = 4
"""Up to so many local steps a delta is much like a gradient."""

_IN_VAIN: Final = frozenset(
    {Reason.TOO_STALE, Reason.UNKNOWN_BASE, Reason.WRONG_BASE, Reason.FUTURE_BASE}
)
"""Refused for its base: what was learnt is good for another one."""


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


def may_restore(train: TrainOptions, outcome: int) -> bool:
    """Whether what was refused is added to the residual again, instead of rolling that back.

    After many local steps a device finds the same way again from the next base, and what was
    refused would be counted twice; after few it would be lost.
    """
    return 1 <= train.steps <= FEW_STEPS and outcome in _IN_VAIN


def restored(message: bytes, residual: bytes | None, size: int) -> bytes | None:
    """The residual with the delta of an update added, `size` float32; None: it stays as it is.

    Of a codec without error feedback nothing is added, nor to a residual of another size.
    """
    if residual is not None and len(residual) != 4 * size:
        return None
    try:
        update = decode_update(message)
        codec = codec_by_id(update.codec)
        if not codec.error_feedback:
            return None
        delta = codec.decode(memoryview(update.payload), size)
    except WireError:
        return None
    left = np.zeros(size, "<f4") if residual is None else np.frombuffer(residual, "<f4").copy()
    add_scaled(left, delta, 1.0)
    return left.tobytes()
