"""Federated dropout, as far as a codec goes: a seeded part of the coordinates, and no mask.

After Caldas et al., "Expanding the Reach of Federated Learning by Reducing Client Resource
Requirements", 2018, and Konecny et al., "Federated Learning: Strategies for Improving Communication
Efficiency", 2016, section 3 (random mask). A uniform subset of k of the n coordinates is drawn from
a seed of 4 bytes (`schemas.codecs.seeded`) and travels as int8, divided by the kept share k / n:
its mean over draws is the vector, so no residual is needed. The relative variance is n / k - 1; the
values are held down where the server's gain makes too much of it (`schemas.codecs.holding`).

What it saves is the uplink, and nothing else. The device still downloads and trains the whole
model, in the same memory and time, and then does not say most of what it found out. Where the
bytes of a message are what is scarce, `sq` says far more in them: it chooses by magnitude.

Layout, little-endian:

    offset  size             what
    0       4                seed, uint32
    4       1 .. 5           k, varint (LEB128), 1 .. n
    ...     2 ceil(k / 1024) scales, bfloat16, >= 0
    ...     k                values, int8, never -128, in the order of their indices
"""

import struct
from typing import Final

import numpy as np

from schemas.codecs import int8, seeded, varint
from schemas.codecs.codec import Ask, Codec
from schemas.codecs.holding import held_down
from schemas.codecs.length import exactly, needs
from schemas.delta import Sparse
from schemas.errors import WireError
from schemas.outcomes import Reason
from schemas.params import Params

_SEED: Final = struct.Struct("<I")
_LANE: Final = 0
_LEAST: Final = _SEED.size + 1 + int8.length(1)


def _length(count: int) -> int:
    return _SEED.size + len(varint.write(count)) + int8.length(count)


def _count(size: int, ask: Ask) -> int:
    """How many coordinates are sent: as many as fit, or the density's share."""
    if not ask.budget:
        return max(1, min(size, round(ask.options.density * size)))
    needs("dropout", _LEAST, ask)
    count = min(size, ask.budget)
    while _length(count) > ask.budget:  # the head is short: a few steps in all
        count -= max(1, (_length(count) - ask.budget) // 2)
    return count


def _encode(vector: Params, ask: Ask, rng: "np.random.Generator") -> bytes:
    count = _count(vector.size, ask)
    seed = seeded.new_seed(rng)
    kept = vector[seeded.subset(seed, _LANE, count, vector.size)]
    share = vector.size / count
    values = int8.quantise(kept, share * held_down(ask.gain, share - 1), rng)
    return _SEED.pack(seed) + varint.write(count) + values


def _decode(payload: memoryview, size: int) -> Sparse:
    count, head = varint.read(payload, _SEED.size)
    if not 1 <= count <= size:
        raise WireError(Reason.BAD_INDEX, f"{count} of {size} coordinates")
    exactly(payload, head + int8.length(count))
    (seed,) = _SEED.unpack_from(payload)
    values = int8.restore(payload[head:], count)
    return Sparse(np.flatnonzero(seeded.subset(seed, _LANE, count, size)), values)


DROPOUT: Final = Codec(
    codec_id=9,
    name="dropout",
    error_feedback=False,
    sparse=True,
    encode=_encode,
    decode=_decode,
    least_bytes=lambda _size: _LEAST,
)
