"""Which header an update gets, and how many bytes that leaves for its payload. Pure.

Where a task bounds what goes up (`uplink`) an update has the short header, and metrics only as long
as they are no burden: with a bound on messages, when the header with them takes a quarter at most.
What a regional server has merged keeps the long header, for the short one cannot say of how many
devices it is; of its metrics the same is true.
"""

from dataclasses import replace
from typing import Final

from schemas.codecs import codec_by_name
from schemas.messages import ModelUpdate
from schemas.seal import SEAL_BYTES
from schemas.task import TaskSpec
from schemas.uplink import read_uplink
from schemas.wire import update_header

METRICS_SHARE: Final = 1 / 4
"""Of a message at most for a header with metrics."""


def headed(update: ModelUpdate, spec: TaskSpec) -> ModelUpdate:
    """The same update as the task wants it told: with all that it holds, or short."""
    if not spec.uplink or (update.metrics and _bears_metrics(update, spec)):
        return update
    if update.contributions != 1 or update.weight != 1.0:
        return replace(update, metrics={})
    return replace(update, spec_digest=None, metrics={})


def payload_bytes(update: ModelUpdate, spec: TaskSpec) -> int:
    """What a message leaves for the payload behind this update's header; 0: no bound."""
    bound = read_uplink(spec.uplink).message_bytes
    if not bound:
        return 0
    return bound - len(update_header(update)) - (SEAL_BYTES if spec.codec.checksum else 0)


def _bears_metrics(update: ModelUpdate, spec: TaskSpec) -> bool:
    bound = read_uplink(spec.uplink).message_bytes
    if not bound:
        return True
    least = codec_by_name(spec.codec.name).least_bytes(spec.params.wire_size)
    is_light = len(update_header(update)) <= METRICS_SHARE * bound
    return is_light and payload_bytes(update, spec) >= least
