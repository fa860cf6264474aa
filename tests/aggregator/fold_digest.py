"""Fold fixed logs and print one SHA-256 over every bit of what comes out.

Run by test_determinism.py under other CPUs, other features and another numpy. Inputs are bytes of
SHA-256 and integer arithmetic, so that they are the same wherever this runs.
"""

import struct
import sys
from collections.abc import Iterator
from hashlib import sha256

import numpy as np

from aggregator.checkpoint import window_to_bytes
from aggregator.fold import Fold, origin_state
from aggregator.staleness import polynomial
from schemas.codecs import CodecOptions
from schemas.delta import BLOCK
from schemas.log import Arrived, Entry, EntryId, SpecSet, Tick
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, shard_of
from schemas.params import Params, ParamSpec, TensorSpec
from schemas.strategy import StalenessOptions, StrategyOptions
from schemas.task import PublishOptions, TaskSpec, spec_to_json
from schemas.wire import encode_update

SMALL = 1003  # no multiple of any vector's width
LARGE = BLOCK + 77  # more than one block
UPDATES = 24
KINDS = ("constant", "polynomial", "hinge")
NAMES = ("fedbuff", "fedasync")
CODECS = ("float32", "topk_int8")


def stream(label: str, size: int) -> bytes:
    """`size` bytes that depend on `label` alone."""
    blocks = (sha256(f"{label}/{n}".encode()).digest() for n in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def numbers(label: str, size: int) -> Params:
    """Values of many magnitudes around zero: a random sign, exponent and fraction each."""
    words = np.frombuffer(stream(label, 4 * size), dtype="<u4")
    exponents = np.uint32(110) + (words >> np.uint32(23)) % np.uint32(20)
    bits = (words & np.uint32(0x807F_FFFF)) | (exponents << np.uint32(23))
    return bits.astype("<u4").view("<f4").astype(np.float32)


def payload(label: str, codec: str, size: int) -> bytes:
    """A payload made without the encoder."""
    if codec == "float32":
        return numbers(label, size).astype("<f4").tobytes()
    count = min(200, size // 5)
    gaps = bytes(1 + byte % 4 for byte in stream(label + "/gaps", count))
    values = bytes(0 if byte == 128 else byte for byte in stream(label + "/values", count))
    return struct.pack("<BfI", 1, 0.0123, count) + gaps + values


def log(
    name: str, kind: str, codec: str, size: int, *, lattice: bool
) -> Iterator[Entry | ModelUpdate]:
    """A specification, updates (their base digests are filled in by `run`) and ticks."""
    spec = TaskSpec(
        params=ParamSpec((TensorSpec("w", (size,)),)),
        strategy=StrategyOptions(
            name,
            buffer_size=5,
            server_lr=0.7,
            momentum=0.9,
            alpha=0.6,
            staleness=StalenessOptions(kind, a=0.3, b=1.0),
            examples_unit=100,
            flush_after_s=0.001,
        ),
        codec=CodecOptions(codec),
        publish=PublishOptions(lattice=lattice, step=2.0**-12 if lattice else 0.0),
    )
    yield Entry(EntryId(1, 0), SpecSet(spec_to_json(spec)))
    for n in range(UPDATES):
        label = f"{name}/{kind}/{codec}/{size}/{n}"
        yield ModelUpdate(
            epoch=Epoch(1),
            boot=Boot(1),
            seq=Seq(n + 1),
            base_version=ModelVersion(n * n % 7),  # how many versions back
            base_digest=0,
            spec_digest=spec.params.short_digest,
            codec=CODECS.index(codec),
            num_examples=7 * n + 1,
            payload=payload(label, codec, size),
        )
        if n % 8 == 6:
            yield Entry(EntryId(1000 * (n + 2) - 1, 0), Tick())


def run(name: str, kind: str, codec: str, size: int, *, lattice: bool = False) -> bytes:
    """Fold one log."""
    published = sha256()
    fold, device, place = Fold(origin_state(Epoch(1), numbers("origin", size))), DeviceId("d"), 0
    for step in log(name, kind, codec, size, lattice=lattice):
        if isinstance(step, Entry):
            fold.apply(step)
            continue
        place += 1
        base = max(0, fold.state.model.version - step.base_version)
        fields = {f: getattr(step, f) for f in step.__dataclass_fields__}
        fields |= {"base_version": base, "base_digest": fold.state.bases[base]}
        data = encode_update(ModelUpdate(**fields))
        came = Arrived(device, shard_of(device), data, len(data))
        fold.apply(Entry(EntryId(1000 * place, 1), came))
        for blob, data in sorted(fold.take_changes().beside.items()):
            published.update(blob.encode() + data)
    state = fold.state
    if state.tally.folded != UPDATES or state.tally.rejected:
        sys.exit(f"{name}/{kind}/{codec}: not everything was folded: {state.tally}")
    hasher = sha256(repr((state.model.version, list(state.bases.items()))).encode())
    for vectors in (state.model.vectors, state.views):
        for key in sorted(vectors):
            hasher.update(str(key).encode() + vectors[key].tobytes())
    if lattice:
        hasher.update(published.digest())
    for window in state.windows.values():
        hasher.update(window_to_bytes(window))
    return hasher.digest()


def weights() -> bytes:
    """Every weight that a staleness can have, as the fold rounds it: `pow` is the C library's."""
    table = [
        np.float32(polynomial(a)(staleness))
        for a in (0.3, 0.5, 0.9, 1.5)
        for staleness in range(1 << 16)
    ]
    return np.array(table).astype("<f4").tobytes()


def total() -> str:
    """Every strategy, staleness and codec; one model of more than one block each; all weights."""
    hasher = sha256(weights())
    for name in NAMES:
        for codec in CODECS:
            for kind in KINDS:
                hasher.update(run(name, kind, codec, SMALL))
        hasher.update(run(name, "polynomial", "float32", LARGE))
        hasher.update(run(name, "hinge", "float32", SMALL, lattice=True))
    return hasher.hexdigest()


if __name__ == "__main__":
    sys.stdout.write(f"{np.__version__} {total()}\n")
