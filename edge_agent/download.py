"""Fetching blobs in chunks: which to ask for next, and whether they are right. Pure.

Chunks are asked for by exact topics, a window at a time: a wildcard over thousands of retained
chunks overruns a broker's queue, and nobody is told.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from typing import Final, Protocol, TypeAlias

from schemas.errors import WireError
from schemas.lattice import diff_bytes
from schemas.messages import Manifest
from schemas.outcomes import Reason

WINDOW: Final = 8
"""Exact topics a SUBSCRIBE, at most (AWS IoT Core)."""

Piece: TypeAlias = tuple[str, int]
"""A blob's name and the number of one of its chunks."""

Here: TypeAlias = dict[str, dict[int, bytes]]
"""The chunks that are on the disk, by blob and number."""


class Whole(Protocol):
    """Something that comes in chunks, by its sizes in bytes: a manifest's blob, or a parcel."""

    @property
    def blob_bytes(self) -> int:
        """All of it."""

    @property
    def chunk_bytes(self) -> int:
        """Every chunk but the last."""

    @property
    def chunks(self) -> int:
        """How many there are."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A blob to fetch.

    Attributes:
        blob: its name.
        blob_bytes: its size; 0: a diff, whose first chunk begins with it.
        chunk_bytes: the size of every chunk but the last.
    """

    blob: str
    blob_bytes: int
    chunk_bytes: int

    @property
    def chunks(self) -> int:
        """How many chunks it has; of a diff without its first one only that is known."""
        return -(-self.blob_bytes // self.chunk_bytes) or 1

    def seen(self, first: bytes | None) -> "Parcel":
        """The same with its size, when its first chunk is here. Raises WireError."""
        if self.blob_bytes or first is None:
            return self
        return replace(self, blob_bytes=diff_bytes(first[:5]))


def next_window(whole: Whole, have: Collection[int]) -> list[int]:
    """The lowest chunk numbers that are missing, at most WINDOW of them; empty when complete."""
    return list(islice(_missing(whole, have), WINDOW))


def _missing(whole: Whole, have: Collection[int]) -> Iterator[int]:
    return (index for index in range(whole.chunks) if index not in have)


def next_pieces(parcels: Sequence[Parcel], here: Here) -> list[Piece]:
    """What to ask for next of several blobs, at most WINDOW; empty when all are complete.

    First chunks first: they tell how many follow. Raises WireError when one is none.
    """
    firsts = [(p.blob, 0) for p in parcels if 0 not in here.get(p.blob, {})]
    rest: list[Piece] = []
    for parcel in parcels:
        have = here.get(parcel.blob, {})
        window = next_window(parcel.seen(have.get(0)), have)
        rest += [(parcel.blob, index) for index in window if index]
    return [*firsts, *rest][:WINDOW]


def fits(whole: Whole, index: int, chunk: bytes) -> bool:
    """Tell whether a chunk has the size that its place asks for."""
    if not 0 <= index < whole.chunks:
        return False
    left = whole.blob_bytes - index * whole.chunk_bytes
    return len(chunk) == min(whole.chunk_bytes, left)


def fits_parcel(parcel: Parcel, have: Mapping[int, bytes], index: int, chunk: bytes) -> bool:
    """The same for a parcel: its first chunk may have to tell the size itself."""
    try:
        return fits(parcel.seen(have.get(0, chunk if index == 0 else None)), index, chunk)
    except WireError:
        return False


def joined(parcel: Parcel, chunks: Mapping[int, bytes]) -> bytes:
    """Put a complete parcel together."""
    return b"".join(chunks[index] for index in range(parcel.seen(chunks.get(0)).chunks))


def assemble(manifest: Manifest, chunks: Mapping[int, bytes]) -> bytes:
    """Put the chunks together. Raises WireError when the whole has not the manifest's digest."""
    blob = b"".join(chunks[index] for index in range(manifest.chunks))
    if sha256(blob).digest() != manifest.blob_digest:
        raise WireError(Reason.MALFORMED, f"blob {manifest.blob} has another digest")
    return blob
