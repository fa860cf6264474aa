"""Fetching a blob in chunks: which to ask for next, and whether they are right. Pure.

Chunks are asked for by exact topics, a window at a time: a wildcard over thousands of retained
chunks overruns a broker's queue, and nobody is told.
"""

from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Final

from schemas.errors import WireError
from schemas.messages import Manifest
from schemas.outcomes import Reason

WINDOW: Final = 8
"""Exact topics a SUBSCRIBE, at most (AWS IoT Core)."""


def next_window(manifest: Manifest, have: Collection[int]) -> list[int]:
    """The lowest chunk numbers that are missing, at most WINDOW of them; empty when complete."""
    missing: list[int] = []
    for index in range(manifest.chunks):
        if index not in have:
            missing.append(index)
            if len(missing) == WINDOW:
                break
    return missing


def fits(manifest: Manifest, index: int, chunk: bytes) -> bool:
    """Tell whether a chunk has the size that its place asks for."""
    if not 0 <= index < manifest.chunks:
        return False
    left = manifest.blob_bytes - index * manifest.chunk_bytes
    return len(chunk) == min(manifest.chunk_bytes, left)


def assemble(manifest: Manifest, chunks: Mapping[int, bytes]) -> bytes:
    """Put the chunks together. Raises WireError when the whole has not the manifest's digest."""
    blob = b"".join(chunks[index] for index in range(manifest.chunks))
    if sha256(blob).digest() != manifest.blob_digest:
        raise WireError(Reason.MALFORMED, f"blob {manifest.blob} has another digest")
    return blob
