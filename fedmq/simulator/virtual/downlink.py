"""What a device fetches to have the newest version. Pure.

A device reads the manifest, whatever it holds. Then nothing, when it holds that version; on a
lattice the fewest diffs that lead there, while the server keeps them, or the keyframe if that is
shorter; else the whole blob. The first model costs nothing: devices draw it from the task's seed.
Left out: the headers of MQTT around a chunk, and what a device asks for twice on a bad link.
"""

from aggregator.state import Lattice
from schemas.ladder import path
from schemas.messages import Manifest
from schemas.wire import encode_manifest


def fetched_bytes(manifest: Manifest, lattice: Lattice | None, holds: int) -> int:
    """Bytes that come down.

    Args:
        manifest: of the newest version.
        lattice: that it lies on; None: it is published whole.
        holds: what the device has, as `held`; -1: nothing but the task's seed.
    """
    told = len(encode_manifest(manifest))
    holds = max(holds, 0)
    if holds == held(manifest, lattice):
        return told
    if lattice is None:
        return told + manifest.blob_bytes
    steps = path(holds, manifest.serial)
    if holds < manifest.oldest or any(step not in lattice.rungs for step in steps):
        return told + manifest.blob_bytes
    return told + min(manifest.blob_bytes, sum(lattice.rungs[step] for step in steps))


def held(manifest: Manifest, lattice: Lattice | None) -> int:
    """What a device is said to hold: publications are counted on a lattice, versions elsewhere."""
    return manifest.version if lattice is None else manifest.serial
