"""What can become of an update: one byte, on the wire (Receipt) and in the dedup window.

0 means "never arrived" and never travels. 1 is folded. 16 and above are refusals, each with
its name. The numbers are wire format: they are added to, never reused.
"""

from enum import IntEnum
from typing import Final

FOLDED: Final = 1


class Reason(IntEnum):
    """Why an update was refused."""

    MALFORMED = 16  # not MessagePack, or not the array that docs/wire.md describes
    TRUNCATED = 17  # the payload ends before its codec's layout does
    OVERSIZED = 18  # larger than the task allows
    UNKNOWN_WIRE = 19  # another wire version
    UNKNOWN_CODEC = 20  # a codec id that this server does not know
    WRONG_CODEC = 21  # a known codec, but not the one the task asks for
    UNKNOWN_TASK = 22  # no such task here
    WRONG_SHARD = 23  # the topic's shard is not the device's
    WRONG_SPEC = 24  # trained with other tensors than the task's
    WRONG_EPOCH = 25  # the task was re-created or restored since
    WRONG_BASE = 26  # the digest of the base is not that of our version
    UNKNOWN_BASE = 27  # a version that was never published
    FUTURE_BASE = 28  # a version that does not exist yet
    TOO_STALE = 29  # older than the task's max_staleness
    NOT_FINITE = 30  # NaN or infinity in delta, weight or metrics
    BAD_INDEX = 31  # an index out of range, or repeated where the codec forbids it
    BAD_NUMBER = 32  # a field outside its range: num_examples, seq, weight ...
    BANNED = 33  # the operator takes nothing from this device
    FINISHED = 34  # the task is finished: its model no longer changes
    CORRUPT = 35  # its checksum is missing or wrong: nothing in it is believed, nothing is settled
    OUTLIER = 36  # too long, or at odds with what the server has found itself


def outcome_name(code: int) -> str:
    """Name one outcome byte: `folded`, `too_stale`, or `code_77` for one from the future."""
    if code == FOLDED:
        return "folded"
    try:
        return Reason(code).name.lower()
    except ValueError:
        return f"code_{code}"
