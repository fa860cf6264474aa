"""The laws that every codec and every message obeys, stated once.

A law is a function that asserts. `tests/schemas` runs every codec of the table and every kind of
message through them; a new codec is tested by adding it to the table.
"""

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.codecs import Ask, Codec, CodecOptions, codec_by_id
from schemas.delta import Delta, Dense, Sparse, to_dense
from schemas.errors import WireError
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.outcomes import Reason
from schemas.params import Params
from schemas.wire import decode_update

LEAN = settings(deadline=None, max_examples=80)
"""Two shared cores: fewer examples, and no deadline that a busy neighbour could break."""


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


# -- what is drawn -----------------------------------------------------------------------------

U16 = st.integers(0, 0xFFFF)
U32 = st.integers(0, 0xFFFF_FFFF)
POSITIVE = st.integers(1, 0xFFFF_FFFF)
DIGEST = st.binary(min_size=32, max_size=32)
FLOAT32_NUMBERS = st.floats(width=32, allow_nan=False)
NAMES = st.from_regex(r"[a-z0-9_-]{1,48}", fullmatch=True)

VECTORS = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
    fill=st.just(np.float32(0)),
)
OPTIONS = st.builds(CodecOptions, density=st.floats(0.001, 1.0))

UPDATES = st.builds(
    ModelUpdate,
    epoch=U16.map(Epoch),
    boot=U32.filter(bool).map(Boot),
    seq=POSITIVE.map(Seq),
    base_version=U32.map(ModelVersion),
    base_digest=U32,
    spec_digest=U16,
    codec=st.integers(0, 127),
    num_examples=POSITIVE,
    payload=st.binary(max_size=64),
    contributions=st.just(1) | POSITIVE,
    weight=st.just(1.0) | FLOAT32_NUMBERS,
    metrics=st.dictionaries(
        st.text(st.characters(codec="ascii"), min_size=1, max_size=32),
        FLOAT32_NUMBERS,
        max_size=16,
    ),
)
MANIFESTS = st.builds(
    Manifest,
    epoch=U16.map(Epoch),
    version=U32.map(ModelVersion),
    model_digest=DIGEST,
    spec_digest=DIGEST,
    codec=st.integers(0, 127),
    blob=NAMES,
    blob_digest=DIGEST,
    blob_bytes=st.integers(1, 1 << 31),
    chunk_bytes=st.integers(64, 1 << 20),
)
RECEIPTS = st.builds(
    Receipt,
    epoch=U16.map(Epoch),
    boot=U32.map(Boot),
    low=U32,
    settled=st.integers(0, (1 << 64) - 1),
    seq=U32,
    outcome=st.integers(0, 255),
    version=U32.map(ModelVersion),
)


# -- laws of codecs ----------------------------------------------------------------------------


def assert_fits(delta: Delta, size: int) -> None:
    """A decoded delta can be added to a vector of `size` without another look."""
    assert delta.values.dtype == np.float32
    match delta:
        case Dense(values):
            assert values.shape == (size,)
        case Sparse(indices, values):
            assert indices.dtype == np.int64
            assert indices.shape == values.shape
            assert indices.ndim == 1
            assert ((indices >= 0) & (indices < size)).all()


def codec_round_trip(codec: Codec, vector: Params, options: CodecOptions) -> None:
    """What comes back fits, is never further from the vector than zero is, and is exact unless
    the codec asks for error feedback."""
    untouched = vector.copy()
    payload = codec.encode(vector, Ask(options), generator())
    assert vector.tobytes() == untouched.tobytes()
    delta = codec.decode(memoryview(payload), vector.size)
    assert_fits(delta, vector.size)
    back = to_dense(delta, vector.size)
    if not codec.error_feedback:
        assert back.tobytes() == (vector + np.float32(0)).tobytes()  # -0.0 is spelt 0.0
    exact = vector.astype(np.float64)
    assert (np.abs(exact - back) <= np.abs(exact) * (1 + 1e-6)).all()


def codec_has_one_length(codec: Codec, vector: Params, options: CodecOptions) -> None:
    """A payload cut at any byte is refused, and so is one with bytes after its end."""
    payload = codec.encode(vector, Ask(options), generator())
    for cut in range(len(payload)):
        with pytest.raises(WireError):
            codec.decode(memoryview(payload)[:cut], vector.size)
    for tail in (b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff", bytes(8)):
        with pytest.raises(WireError):
            codec.decode(memoryview(payload + tail), vector.size)


def codec_survives(codec: Codec, payload: bytes, size: int) -> None:
    """Whatever the bytes are: a delta that fits, or WireError, and nothing else."""
    try:
        delta = codec.decode(memoryview(payload), size)
    except WireError:
        return
    assert_fits(delta, size)


# -- laws of messages --------------------------------------------------------------------------


def message_round_trip(
    encode: Callable[[Any], bytes], decode: Callable[[bytes], Any], value: object
) -> None:
    """Reading what was written gives the value, and writing it again the same bytes."""
    data = encode(value)
    back = decode(data)
    assert back == value
    assert encode(back) == data


def message_refuses_every_cut(decode: Callable[[bytes], object], data: bytes) -> None:
    """Cut at any byte, the message is refused."""
    for cut in range(len(data)):
        with pytest.raises(WireError):
            decode(data[:cut])


def message_survives(decode: Callable[[bytes], object], data: bytes) -> None:
    """Whatever the bytes are: a value or WireError, and nothing else."""
    with suppress(WireError):
        decode(data)


def open_update(data: bytes, size: int) -> Delta:
    """Read an update as far as admission does: header, then the payload by its codec."""
    update = decode_update(data)
    return codec_by_id(update.codec).decode(memoryview(update.payload), size)


def refuses_without_allocating(
    decode: Callable[[], object], reason: Reason, most: int = 1 << 16
) -> None:
    """Refused for `reason`, and never more than `most` bytes were asked for on the way."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError) as caught:
            decode()
        _, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.reason is reason
    assert highest < most
