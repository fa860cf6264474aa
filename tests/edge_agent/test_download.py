from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN

from edge_agent.download import WINDOW, assemble, fits, next_window
from schemas.errors import WireError
from schemas.messages import Manifest
from schemas.names import Epoch, ModelVersion
from schemas.outcomes import Reason

CHUNK_BYTES = 64


def manifest_of(blob: bytes, *, chunk_bytes: int = CHUNK_BYTES) -> Manifest:
    return Manifest(
        epoch=Epoch(1),
        version=ModelVersion(1),
        model_digest=bytes(32),
        spec_digest=bytes(32),
        codec=0,
        blob="k1-1",
        blob_digest=sha256(blob).digest(),
        blob_bytes=len(blob),
        chunk_bytes=chunk_bytes,
    )


def cut(blob: bytes) -> dict[int, bytes]:
    starts = range(0, len(blob), CHUNK_BYTES)
    return {i: blob[start : start + CHUNK_BYTES] for i, start in enumerate(starts)}


BLOBS = st.binary(min_size=1, max_size=40 * CHUNK_BYTES)


@st.composite
def half_received(draw: st.DrawFn) -> tuple[bytes, set[int]]:
    blob = draw(BLOBS)
    return blob, draw(st.sets(st.sampled_from(sorted(cut(blob)))))


@LEAN
@given(half=half_received())
def test_a_window_is_the_lowest_missing_chunks_and_at_most_8(half):
    blob, have = half
    missing = [index for index in cut(blob) if index not in have]
    assert next_window(manifest_of(blob), have) == missing[:8]
    assert WINDOW == 8


@LEAN
@given(half=half_received())
def test_a_download_is_resumed_and_asks_for_no_chunk_twice(half):
    blob, begun = half
    manifest, pieces = manifest_of(blob), cut(blob)
    have = {index: pieces[index] for index in begun}
    asked: list[int] = []
    while window := next_window(manifest, have):
        asked += window
        have |= {index: pieces[index] for index in window}
    assert sorted([*asked, *begun]) == list(pieces)
    assert assemble(manifest, have) == blob


@LEAN
@given(blob=BLOBS)
def test_every_right_chunk_fits_its_own_place(blob):
    manifest = manifest_of(blob)
    assert manifest.chunks == len(cut(blob))
    assert all(fits(manifest, index, chunk) for index, chunk in cut(blob).items())


@LEAN
@given(blob=BLOBS, change=st.integers(-CHUNK_BYTES, CHUNK_BYTES).filter(bool), data=st.data())
def test_a_chunk_of_the_wrong_size_is_refused(blob, change, data):
    index = data.draw(st.sampled_from(sorted(cut(blob))))
    size = len(cut(blob)[index]) + change
    assert not fits(manifest_of(blob), index, bytes(max(0, size)))


@LEAN
@given(blob=BLOBS, beyond=st.integers(0, 5))
def test_a_chunk_of_no_place_is_refused(blob, beyond):
    manifest = manifest_of(blob)
    assert not fits(manifest, manifest.chunks + beyond, bytes(CHUNK_BYTES))
    assert not fits(manifest, -1 - beyond, bytes(CHUNK_BYTES))


@LEAN
@given(blob=BLOBS, data=st.data())
def test_a_blob_with_one_wrong_bit_is_refused(blob, data):
    pieces = cut(blob)
    place = data.draw(st.integers(0, len(blob) - 1))
    index, offset = divmod(place, CHUNK_BYTES)
    wrong = bytearray(pieces[index])
    wrong[offset] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(WireError) as refused:
        assemble(manifest_of(blob), pieces | {index: bytes(wrong)})
    assert refused.value.reason is Reason.MALFORMED
    assert "k1-1" in str(refused.value)
