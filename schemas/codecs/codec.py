"""What a codec is: encode, decode, codec_id, and how much of the vector it keeps.

A codec is a frozen value of plain functions. It holds no state: error feedback lives with the
device (`edge_agent.compressor`), which adds the residual before `encode` and keeps what
`decode(encode(u))` left behind, when the codec says that it needs that. A stochastic codec draws
from the generator it is given. A codec that carries a multiset answers with a `Sparse` delta whose
indices repeat; a rotated or quantised one answers `Dense`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec
import numpy as np

from schemas.delta import Delta
from schemas.params import Params


class CodecOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[codec]`: how a delta is written.

    Attributes:
        name: `sq` (impulses drawn in proportion to the delta: unbiased, the fewest bytes),
            `float32` (all of it, exactly), `float16` (half of that), `int8` (a quarter, rounded by
            chance), `topk_int8` (the largest coordinates, a byte each), `stc` (the largest, all as
            their mean), `sign` (a bit a coordinate), `qsgd` (a few levels, rounded by chance),
            `eden` (rotated, as many bits a coordinate as there is room for) or `dropout` (a seeded
            part of the coordinates). `topk_int8`, `stc` and `sign` keep the rest on the device.
        density: for `topk_int8`, `stc` and `dropout`, the share of coordinates sent, above 0 and at
            most 1; a byte budget (`uplink`) decides where there is one.
        checksum: updates, manifests and receipts carry a CRC-32: for links without TLS whose bytes
            may be altered on the way; costs 4 bytes an update.
    """

    name: str = "sq"
    density: float = 0.05
    checksum: bool = False


_AS_EVER: Final = CodecOptions()


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of an encoder, besides the vector.

    Attributes:
        options: the task's.
        budget: bytes that the payload may take: the encoder fills them as well as it can. 0: as the
            options say, or as the codec thinks best.
        gain: by how much the server multiplies one update before it adds it to the model (server
            rate / (1 - momentum) / K; FedAsync: alpha). 0: not known, nothing is held down for it.
    """

    options: CodecOptions = _AS_EVER
    budget: int = 0
    gain: float = 0.0


# The generator's type is quoted here and everywhere on the device's side: evaluating it would load
# numpy.random, some 3 MB, where nothing is drawn yet.
Encode: TypeAlias = Callable[[Params, Ask, "np.random.Generator"], bytes]
"""(vector of shape (size,), what is asked, a generator) -> payload, never longer than the budget.
Raises ConfigError("uplink") when the budget is below `Codec.least_bytes(size)`."""

Decode: TypeAlias = Callable[[memoryview, int], Delta]
"""(payload, size) -> delta. Raises WireError; allocates nothing beyond O(size + len(payload))."""


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to write a delta.

    Attributes:
        codec_id: the number that travels, 0 to 127, never reused.
        name: what a task's specification calls it.
        error_feedback: what is not sent is kept as a residual and added to the next delta; what
            becomes of it when an update is refused stands in docs/decisions/0017.
        sparse: it leaves coordinates out: of two updates few are in both.
        encode: see `Encode`.
        least_bytes: size -> the shortest payload that `encode` can be held to.
        decode: see `Decode`. Does not check for NaN: admission does, for every codec alike.
    """

    codec_id: int
    name: str
    error_feedback: bool
    sparse: bool
    encode: Encode
    decode: Decode
    least_bytes: Callable[[int], int]
