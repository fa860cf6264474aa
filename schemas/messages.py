"""The binary messages as values. Frozen; their bytes are made and read in `schemas.wire`."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.names import Boot, Epoch, ModelVersion, Seq


@dataclass(frozen=True, slots=True)
class ModelUpdate:
    """What a device has learnt from one base model: `delta = w_local - w_base`, encoded.

    Attributes:
        epoch: the task's epoch that the base belongs to.
        boot: the spool's random number.
        seq: from 1 within a boot; (device, boot, seq) is the update's identity.
        base_version: the published version it was trained from.
        base_digest: the first 4 bytes of that model's digest, as a number; None: not told.
        spec_digest: the first 2 bytes of the ParamSpec's digest, as a number; None: not told.
        codec: the codec's id.
        num_examples: examples seen in one local epoch, at least 1.
        payload: the codec's bytes.
        contributions: updates merged into this one (hierarchical folds); 1 from a device.
        weight: the weight they carry together; 1 from a device.
        metrics: what the trainer measured, at most 16 finite floats by name.
        partial: epoch and base_version are only their lowest 4 and 16 bits, as in a radio's frame;
            whoever knows the task's versions completes them.
    """

    epoch: Epoch
    boot: Boot
    seq: Seq
    base_version: ModelVersion
    base_digest: int | None
    spec_digest: int | None
    codec: int
    num_examples: int
    payload: bytes | memoryview
    contributions: int = 1
    weight: float = 1.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    partial: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is published of a model: enough to fetch it in chunks and to prove it.

    A manifest of a task with a lattice travels in a short form, which tells the beginnings of
    digests: compare with `startswith`.

    Attributes:
        epoch: the task's epoch.
        version: the number of folds that made this model.
        model_digest: SHA-256 over the ParamSpec's digest and the parameters, 32 bytes; the first 8
            in the short form.
        spec_digest: the ParamSpec's digest, 32 bytes; the first 2 in the short form.
        codec: the id of the codec of the blob: 0, the parameters as float32; `lattice.KEYFRAME`
            has the short form, and only that.
        blob: the name under which the chunks are retained; `ladder.keyframe_name` gives that of a
            short form.
        blob_digest: SHA-256 of the whole blob, 32 bytes; empty in the short form.
        blob_bytes: its size.
        chunk_bytes: the size of every chunk but the last.
        serial: which publication of the task this is, counted from 0; short form only, as below.
        oldest: the first publication from which diffs lead here; `serial` when none does.
        origin: the name of the retained blob of W0, `o` and 8 hex digits; empty when devices draw
            it themselves.
        ladder: bytes of the newest diff of level 0, 1 ...; 0 where there is none.
    """

    epoch: Epoch
    version: ModelVersion
    model_digest: bytes
    spec_digest: bytes
    codec: int
    blob: str
    blob_digest: bytes
    blob_bytes: int
    chunk_bytes: int
    serial: int = 0
    oldest: int = 0
    origin: str = ""
    ladder: tuple[int, ...] = ()

    @property
    def chunks(self) -> int:
        """How many chunks the blob has."""
        return -(-self.blob_bytes // self.chunk_bytes)


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a device's updates: cumulative, retained, the only promise.

    Attributes:
        epoch: the task's epoch when it was written.
        boot: which spool's numbers it speaks of; 0 when the update named none.
        low: every seq up to it is settled.
        settled: bit i tells whether `low + 1 + i` is settled, uint64.
        seq: the update this receipt answers; 0 when it named none.
        outcome: what became of that one (`schemas.outcomes`).
        version: the model version after it.
    """

    epoch: Epoch
    boot: Boot
    low: int
    settled: int
    seq: int
    outcome: int
    version: ModelVersion
