"""The laws that every codec and every message obeys, stated once.

A law is a function that asserts. `tests/schemas` runs every codec of the table and every kind of
message through them; a new codec is tested by adding it to the table.
"""

import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from schemas.codecs import Ask, Codec, CodecOptions, codec_by_id
from schemas.delta import Delta, Dense, Sparse, to_dense
from schemas.errors import ConfigError, WireError
from schemas.ladder import keyframe_name
from schemas.lattice import KEYFRAME, LEVELS
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import Boot, Epoch, ModelVersion, Seq
from schemas.outcomes import Reason
from schemas.params import Params
from schemas.wire import decode_update

LEAN = settings(deadline=None, max_examples=50)
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
HEAVY = (np.exp(2 * generator(1).standard_normal(600)) * generator(2).standard_normal(600)).astype(
    np.float32
)
"""600 numbers with a heavy tail: the largest has six sevenths of the squared length."""
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
SHORT_UPDATES = st.builds(
    ModelUpdate,
    epoch=U16.map(Epoch),
    boot=POSITIVE.map(Boot),
    seq=POSITIVE.map(Seq),
    base_version=U32.map(ModelVersion),
    base_digest=U32,
    spec_digest=st.none(),
    codec=st.integers(0, 127),
    num_examples=POSITIVE,
    payload=st.binary(max_size=64),
)
FRAMES = st.builds(
    ModelUpdate,
    epoch=st.integers(0, 15).map(Epoch),
    boot=POSITIVE.map(Boot),
    seq=POSITIVE.map(Seq),
    base_version=U16.map(ModelVersion),
    base_digest=st.none(),
    spec_digest=st.none(),
    codec=st.integers(0, 127),
    num_examples=st.integers(0, 15).map(lambda power: 1 << power),
    payload=st.binary(max_size=64),
    partial=st.just(True),
)
MANIFESTS = st.builds(
    Manifest,
    epoch=U16.map(Epoch),
    version=U32.map(ModelVersion),
    model_digest=DIGEST,
    spec_digest=DIGEST,
    codec=st.integers(0, 127).filter(lambda codec: codec != KEYFRAME),
    blob=NAMES,
    blob_digest=DIGEST,
    blob_bytes=st.integers(1, 1 << 31),
    chunk_bytes=st.integers(64, 1 << 20),
)
_SERIALS = st.tuples(U32, U32).map(sorted)
SHORT_MANIFESTS = st.builds(
    lambda epoch, version, serials, **others: Manifest(
        epoch=Epoch(epoch),
        version=ModelVersion(version),
        codec=KEYFRAME,
        blob=keyframe_name(Epoch(epoch), ModelVersion(version)),
        blob_digest=b"",
        oldest=serials[0],
        serial=serials[1],
        **others,
    ),
    epoch=U16,
    version=U32,
    serials=_SERIALS,
    model_digest=st.binary(min_size=8, max_size=8),
    spec_digest=st.binary(min_size=2, max_size=2),
    blob_bytes=st.integers(1, 1 << 31),
    chunk_bytes=st.integers(64, 1 << 20),
    origin=st.just("") | st.from_regex(r"o[0-9a-f]{8}", fullmatch=True),
    ladder=st.lists(st.integers(0, 1 << 31), max_size=LEVELS).map(tuple),
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


EXACT = frozenset({"float32"})
"""Codecs that give back what they were given."""


def codec_round_trip(codec: Codec, vector: Params, options: CodecOptions) -> None:
    """What comes back fits, is nothing for nothing, and is exact where that is promised. What a
    codec with error feedback leaves behind is never longer than the vector."""
    untouched = vector.copy()
    payload = codec.encode(vector, Ask(options), generator())
    assert vector.tobytes() == untouched.tobytes()
    delta = codec.decode(memoryview(payload), vector.size)
    assert_fits(delta, vector.size)
    back = to_dense(delta, vector.size)
    if codec.name in EXACT:
        assert back.tobytes() == (vector + np.float32(0)).tobytes()  # -0.0 is spelt 0.0
    if codec.error_feedback:
        exact = vector.astype(np.float64)
        assert np.square(exact - back).sum() <= np.square(exact).sum() * (1 + 1e-6)
    nothing = codec.encode(np.zeros_like(vector), Ask(options), generator())
    assert not to_dense(codec.decode(memoryview(nothing), vector.size), vector.size).any()


def codec_has_one_length(codec: Codec, vector: Params, options: CodecOptions) -> None:
    """A payload cut at any byte is refused, and so is one with bytes after its end."""
    payload = codec.encode(vector, Ask(options), generator())
    for cut in range(len(payload)):
        with pytest.raises(WireError):
            codec.decode(memoryview(payload)[:cut], vector.size)
    for tail in (b"\0", b"\xff", b"\0\0", b"\xff\xff", b"\xff\xff\xff\xff", bytes(8)):
        with pytest.raises(WireError):
            codec.decode(memoryview(payload + tail), vector.size)


def codec_keeps_to_its_budget(codec: Codec, vector: Params, more: int) -> None:
    """A payload is never longer than it may be, and a budget that is too small is refused."""
    least = codec.least_bytes(vector.size)
    payload = codec.encode(vector, Ask(budget=least + more), generator())
    assert len(payload) <= least + more
    assert_fits(codec.decode(memoryview(payload), vector.size), vector.size)
    with pytest.raises(ConfigError) as caught:
        codec.encode(vector, Ask(budget=least - 1), generator())
    assert caught.value.field == "uplink"


def codec_is_unbiased(codec: Codec, vector: Params, ask: Ask, draws: int) -> float:
    """The mean over draws is the vector, as a whole and along itself. Gives the relative variance.

    The distance of the mean from an unbiased codec's vector is, squared, that of one draw divided
    by the draws; a bias of `b` adds `b^2` to it. A factor of 1.3 finds a bias above
    sqrt(0.3 * variance / draws); where draws err in few directions it is 4.5 standard errors, told
    by how much two draws have in common. Along the vector the mean may miss by as many.
    """
    exact = vector.astype(np.float64)
    whole = np.square(exact).sum()
    rng, errors = generator(7), np.empty((draws, vector.size))
    for error in errors:
        payload = codec.encode(vector, ask, rng)
        error[:] = to_dense(codec.decode(memoryview(payload), vector.size), vector.size) - exact
    variance = float(np.square(errors).sum() / whole / draws)
    common = np.square((errors[1:] * errors[:-1]).sum(axis=1) / whole).mean()
    missed = np.square(errors.mean(axis=0)).sum() / whole
    assert missed * draws < variance + max(0.3 * variance, 4.5 * np.sqrt(2 * common))
    shares = errors @ exact / whole
    assert abs(np.mean(shares)) < 4.5 * np.std(shares) / np.sqrt(draws) + 1e-6
    return variance


def codec_holds_itself_down(codec: Codec, vector: Params, ask: Ask) -> None:
    """Twice the gain that is stable halves what is sent; half of it changes nothing."""
    omega = codec_is_unbiased(codec, vector, ask, 100)
    exact = vector.astype(np.float64)
    for times, factor in ((0.5, 1.0), (2.0, 0.5)):
        held, rng, shares = replace(ask, gain=30 / omega * times), generator(8), []
        for _ in range(100):
            payload = codec.encode(vector, held, rng)
            back = to_dense(codec.decode(memoryview(payload), vector.size), vector.size)
            shares.append(back @ exact / (exact @ exact))
        assert np.mean(shares) == pytest.approx(factor, rel=0.1)


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
