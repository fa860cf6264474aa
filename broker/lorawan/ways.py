"""Which blobs lead a radio along a step, and the one diff that is made of them. Pure."""

from collections.abc import Sequence

from broker.lorawan.transfers import Step
from schemas.errors import WireError
from schemas.ladder import blob_name, path
from schemas.lattice import decode_diff, encode_diff, merged
from schemas.names import Epoch
from schemas.outcomes import Reason


def rungs(step: Step) -> list[str]:
    """The ladder's blobs between the two publications, in order; none for a keyframe."""
    if step.first is None:
        return []
    return [blob_name(Epoch(step.epoch), s, level) for s, level in path(step.first, step.last)]


def joined(blobs: Sequence[bytes], sizes: tuple[int, ...]) -> bytes:
    """One diff that does what these do, one after the other.

    Args:
        blobs: at least one, as they are published.
        sizes: of the tensors that travel.

    Raises:
        WireError: one of them is none, or what comes out is beyond 32 bits.
    """
    if not blobs:
        raise WireError(Reason.TRUNCATED, "no diff leads there")
    total = decode_diff(blobs[0], sizes)
    for blob in blobs[1:]:
        total = merged(total, decode_diff(blob, sizes), sizes)
    return encode_diff(total, sizes)
