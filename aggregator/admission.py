"""Admission: an update's bytes become a Contribution, or a refusal with its name.

Pure: bytes and the state of the task in, a value out. Expected trouble is a value here; nothing
that a device can send raises.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite

from aggregator.strategies import Contribution
from schemas.codecs import codec_by_id, codec_by_name
from schemas.delta import peak, within
from schemas.errors import WireError
from schemas.log import Arrived
from schemas.messages import ModelUpdate
from schemas.names import Epoch, ModelVersion, shard_of
from schemas.outcomes import Reason
from schemas.seal import unsealed
from schemas.short import FRAME_EPOCHS, FRAME_VERSIONS
from schemas.task import TaskSpec
from schemas.wire import decode_update


@dataclass(frozen=True, slots=True)
class Rejected:
    """A refused update: the reason that is counted and answered, and a sentence for people."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Standing:
    """What admission must know of the task at this point of the log.

    Attributes:
        spec: the task.
        codec_ids: of the codecs that the task has asked for so far.
        size: parameters that travel.
        spec_digest: the ParamSpec's short digest.
        epoch: the task's epoch.
        version: folds so far.
        bases: published versions that may serve as a base -> the first 4 bytes of their digest.
    """

    spec: TaskSpec
    codec_ids: frozenset[int]
    size: int
    spec_digest: int
    epoch: int
    version: int
    bases: Mapping[int, int]


def without_seal(arrived: Arrived, *, required: bool) -> Arrived | Rejected:
    """Take the seal off, for a task that has ever asked for one.

    Of a message that was cut no seal is here: it is refused for its size, but what its head says
    is not believed.
    """
    if arrived.size != len(arrived.data):
        return Rejected(Reason.OVERSIZED, f"{arrived.size} bytes") if required else arrived
    data = unsealed(arrived.data, arrived.device)
    if data is not None:
        return replace(arrived, data=data, size=len(data))
    if required:
        return Rejected(Reason.CORRUPT, "the checksum is missing or wrong")
    return arrived


def read_header(arrived: Arrived, standing: Standing) -> ModelUpdate | Rejected:
    """Read as much of the message as tells who it says it is, and which model it speaks of.

    An oversized message still has a readable head, so that its sender can be answered.
    """
    try:
        update = decode_update(arrived.data)
    except WireError as exc:
        limit = standing.spec.max_update_bytes
        oversized = arrived.size > limit or arrived.size != len(arrived.data)
        return Rejected(Reason.OVERSIZED if oversized else exc.reason, str(exc))
    return _completed(update, standing) if update.partial else update


def _completed(update: ModelUpdate, standing: Standing) -> ModelUpdate:
    """Read the epoch and version of a frame: the newest that end in its bits.

    No base is older than 2^16 versions (strategy.max_staleness), so that there is no choice; and a
    task's next life avoids the epochs that end like those before (`aggregator.tasks.fresh_epoch`).
    """
    return replace(
        update,
        epoch=Epoch(_newest(update.epoch, FRAME_EPOCHS, standing.epoch)),
        base_version=ModelVersion(_newest(update.base_version, FRAME_VERSIONS, standing.version)),
        partial=False,
    )


def _newest(rest: int, modulus: int, now: int) -> int:
    """The highest number up to `now` with this remainder; one that is to come if there is none."""
    found = now - (now - rest) % modulus
    return found if found >= 0 else rest


def admit(arrived: Arrived, update: ModelUpdate, standing: Standing) -> Contribution | Rejected:
    """Check everything, cheapest first, and decode."""
    refusal = _refusal(arrived, update, standing)
    if refusal is not None:
        return refusal
    try:
        delta = codec_by_id(update.codec).decode(memoryview(update.payload), standing.size)
    except WireError as exc:
        return Rejected(exc.reason, str(exc))
    if not within(delta.values, standing.spec.limits.max_abs):
        return _height_refusal(peak(delta.values))
    staleness = standing.version - update.base_version
    return Contribution(
        update.base_version,
        staleness,
        update.num_examples,
        delta,
        device=arrived.device,
        contributions=update.contributions,
        carried=update.weight,
    )


def _refusal(arrived: Arrived, update: ModelUpdate, standing: Standing) -> Rejected | None:
    limit = standing.spec.max_update_bytes
    if arrived.size > limit or arrived.size != len(arrived.data):  # or the bridge has cut it
        return Rejected(Reason.OVERSIZED, f"{arrived.size} bytes, the task allows {limit}")
    if arrived.shard != shard_of(arrived.device):
        return Rejected(Reason.WRONG_SHARD, f"shard {arrived.shard} is not {arrived.device}'s")
    if update.epoch != standing.epoch:
        return Rejected(Reason.WRONG_EPOCH, f"epoch {update.epoch}, now {standing.epoch}")
    if update.spec_digest not in {None, standing.spec_digest}:
        return Rejected(Reason.WRONG_SPEC, "trained with other tensors than the task's")
    return _base_refusal(update, standing) or _content_refusal(update, standing)


def _base_refusal(update: ModelUpdate, standing: Standing) -> Rejected | None:
    base, version = update.base_version, standing.version
    if base > version:
        return Rejected(Reason.FUTURE_BASE, f"base {base}, the model is at {version}")
    if version - base > standing.spec.strategy.staleness_bound:
        return Rejected(Reason.TOO_STALE, f"base {base} is {version - base} versions old")
    digest = standing.bases.get(base)
    if digest is None:
        oldest = min(standing.bases)
        reason = Reason.TOO_STALE if base < oldest else Reason.UNKNOWN_BASE
        return Rejected(reason, f"version {base} is not among the published bases")
    if update.base_digest not in {None, digest}:
        return Rejected(Reason.WRONG_BASE, f"another model than our version {base}")
    return None


def _content_refusal(update: ModelUpdate, standing: Standing) -> Rejected | None:
    try:
        codec = codec_by_id(update.codec)
    except WireError as exc:
        return Rejected(exc.reason, str(exc))
    if codec.codec_id not in standing.codec_ids:
        return Rejected(
            Reason.WRONG_CODEC, f"codec {codec.name}, the task says {standing.spec.codec.name}"
        )
    return _merged_refusal(update, standing.spec.strategy.contributions_max) or _metrics_refusal(
        update
    )


def _merged_refusal(update: ModelUpdate, most: int) -> Rejected | None:
    """Of merged updates no more than the task allows; what they carry is a mean of weights."""
    if update.contributions > most or (most == 1 and update.weight != 1.0):
        told = f"{update.contributions} merged contributions, the task allows {most}"
        return Rejected(Reason.BAD_NUMBER, told)
    if not 0 < update.weight <= 1:  # NaN, too, is outside
        return Rejected(Reason.BAD_NUMBER, f"a weight of {update.weight:g}")
    return None


def _metrics_refusal(update: ModelUpdate) -> Rejected | None:
    if not all(isfinite(value) for value in update.metrics.values()):
        return Rejected(Reason.NOT_FINITE, "a metric is NaN or infinite")
    return None


def _height_refusal(height: float) -> Rejected:
    if not isfinite(height):
        return Rejected(Reason.NOT_FINITE, "the delta holds NaN or infinity")
    return Rejected(Reason.BAD_NUMBER, f"a coordinate of {height:g} is beyond limits.max_abs")


def codec_id_of(spec: TaskSpec) -> int:
    """The id of the codec that a task asks for."""
    return codec_by_name(spec.codec.name).codec_id
