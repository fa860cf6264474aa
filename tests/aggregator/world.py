"""A task in memory: makes real bytes, appends them to a log, folds them as they come."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

import msgspec
import numpy as np

from aggregator.checkpoint import (
    changed_devices,
    changed_vectors,
    changed_windows,
    read_small_state,
    restore,
    sender_to_text,
    small_state,
)
from aggregator.fold import Fold
from aggregator.state import Changes, Lattice, Publication, TaskState, origin_state
from schemas.codecs import Ask, CodecOptions, codec_by_name
from schemas.log import Arrived, Body, Entry, EntryId, SpecSet, Tick
from schemas.messages import ModelUpdate
from schemas.names import Boot, DeviceId, Epoch, ModelVersion, Seq, shard_of
from schemas.params import Params, ParamSpec, TensorSpec, base_digest, model_digest
from schemas.seal import sealed
from schemas.strategy import StalenessOptions, StrategyOptions, gain_of
from schemas.task import (
    EvaluateOptions,
    FinishOptions,
    GateOptions,
    InitOptions,
    LimitOptions,
    PublishOptions,
    TaskSpec,
    spec_to_json,
)
from schemas.wire import encode_update

SIZE = 8
EPOCH = Epoch(3)
BOOT = Boot(7)
START_MS = 1_000_000
TENSORS = ParamSpec((TensorSpec("w", (2, 3)), TensorSpec("b", (2,))))
DEVICE = DeviceId("d")


def options(**given: Any) -> StrategyOptions:
    """FedBuff with K = 1 and constant weights, unless told otherwise."""
    plain = {"buffer_size": 1, "staleness": StalenessOptions("constant"), "flush_after_s": 0.0}
    return StrategyOptions(**(plain | given))


def make_spec(
    *,
    codec: str = "float32",
    checksum: bool = False,
    publish: PublishOptions | None = None,
    limits: LimitOptions | None = None,
    evaluate: EvaluateOptions | None = None,
    gate: GateOptions | None = None,
    finish: FinishOptions | None = None,
    init: InitOptions | None = None,
    params: ParamSpec = TENSORS,
    **strategy: Any,
) -> TaskSpec:
    """A task of 8 parameters."""
    return TaskSpec(
        params=params,
        strategy=options(**strategy),
        codec=CodecOptions(codec, density=0.5, checksum=checksum),
        publish=publish or PublishOptions(),
        limits=limits or LimitOptions(),
        evaluate=evaluate or EvaluateOptions(),
        gate=gate or GateOptions(),
        finish=finish or FinishOptions(),
        init=init,
    )


def ramp(step: float = 1.0) -> Params:
    """0, step, 2 step, ..."""
    return (np.arange(SIZE) * step).astype(np.float32)


def vector(rng: np.random.Generator, size: int = SIZE) -> Params:
    """Anything around zero."""
    return rng.standard_normal(size).astype(np.float32)


def encoded(codec: str, delta: Params) -> bytes:
    """A delta's payload."""
    rng = np.random.Generator(np.random.PCG64(0))
    return codec_by_name(codec).encode(delta, Ask(CodecOptions(codec, density=0.5)), rng)


def arrived(data: bytes, *, device: str = DEVICE, size: int | None = None) -> Arrived:
    """What the bridge would write."""
    name = DeviceId(device)
    return Arrived(name, shard_of(name), data, len(data) if size is None else size)


@dataclass
class World:
    """A fold, the log that it has folded, and a device's pen.

    `spec` None leaves the log empty.
    """

    spec: TaskSpec | None = field(default_factory=make_spec)
    params: Params = field(default_factory=ramp)
    log: list[Entry] = field(default_factory=list)
    now_ms: int = START_MS
    seqs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fold = Fold(origin_state(EPOCH, self.params))
        if self.spec is not None:
            self.append(SpecSet(spec_to_json(self.spec)))

    @property
    def state(self) -> TaskState:
        return self.fold.state

    @property
    def model(self) -> Params:
        return self.state.model.vectors["params"]

    @property
    def digest(self) -> bytes:
        return model_digest(TENSORS.digest, self.model)

    @property
    def ones(self) -> Params:
        """A delta of ones, as long as what travels."""
        assert self.spec is not None
        return np.ones(self.spec.params.wire_size, np.float32)

    def append(self, body: Body, *, after_ms: int = 1) -> None:
        """Write into the log, and fold."""
        self.now_ms += after_ms
        entry = Entry(EntryId(self.now_ms, 0), body)
        self.log.append(entry)
        self.fold.apply(entry)

    def tick(self, after_ms: int) -> None:
        self.append(Tick(), after_ms=after_ms)

    def respecify(self, spec: TaskSpec) -> None:
        self.spec = spec
        self.append(SpecSet(spec_to_json(spec)))

    def update(self, delta: Params | None = None, **given: Any) -> ModelUpdate:
        """A good update from the newest base under the device's next number."""
        assert self.spec is not None
        codec = codec_by_name(self.spec.codec.name)
        base = given.pop("base_version", max(self.state.bases))
        device = given.pop("device", DEVICE)
        highest = self.seqs.get(device, 0)
        seq = given.pop("seq", highest + 1)
        self.seqs[device] = max(highest, seq)
        good = ModelUpdate(
            epoch=self.state.epoch,
            boot=BOOT,
            seq=Seq(seq),
            base_version=ModelVersion(base),
            base_digest=self.state.bases.get(base, 0),
            spec_digest=self.spec.params.short_digest,
            codec=codec.codec_id,
            num_examples=1,
            payload=encoded(codec.name, self.ones if delta is None else delta),
        )
        return replace(good, **given)

    def send(self, delta: Params | None = None, *, device: str = DEVICE, **given: Any) -> bytes:
        """Send a good update, or one that differs in what is given. Returns its bytes."""
        data = encode_update(self.update(delta, device=device, **given))
        if self.spec is not None and self.spec.codec.checksum:
            data = sealed(data, DeviceId(device))
        self.append(arrived(data, device=device))
        return data

    def changes(self) -> Changes:
        return self.fold.take_changes()


class Store:
    """What a store accumulates over commits: bytes, and nothing else."""

    def __init__(self) -> None:
        self.small = b""
        self.vectors: dict[str, bytes] = {}
        self.windows: dict[str, bytes] = {}
        self.devices: dict[str, bytes] = {}

    def commit(self, fold: Fold) -> None:
        changes = fold.take_changes()
        self.small = small_state(fold.state, ())
        for name, data in changed_vectors(fold.state, changes).items():
            if data is None:
                self.vectors.pop(name, None)
            else:
                self.vectors[name] = data
        self.windows |= changed_windows(fold.state, changes.senders)
        for sender in changes.gone_senders:
            self.windows.pop(sender_to_text(sender), None)
        self.devices |= changed_devices(fold.state, changes)

    def load(self) -> Fold:
        return Fold(restore(read_small_state(self.small), self.vectors, self.windows, self.devices))


def image(state: TaskState) -> dict[str, object]:
    """Everything of a state, so that two can be compared bit for bit."""
    return {
        "small": msgspec.json.decode(small_state(state, ())),
        "vectors": {name: v.tobytes() for name, v in state.model.vectors.items()},
        "packed": dict(state.model.packed),
        "views": {version: v.tobytes() for version, v in state.views.items()},
        "windows": dict(state.windows),
        "bases": list(state.bases.items()),
        "devices": {d: msgspec.json.encode(r) for d, r in sorted(state.devices.items())},
        "beside": [None if v is None else v.tobytes() for v in (state.fixed, state.good)],
        "lattice": None if state.lattice is None else _lattice_image(state.lattice),
    }


def _lattice_image(lattice: Lattice) -> dict[str, object]:
    found = {each.name: getattr(lattice, each.name) for each in fields(lattice)}
    return found | {"origin": lattice.origin.tobytes(), "q": lattice.q.tobytes()}


def newest(changes: Changes) -> Publication | None:
    """The newest version that is to be kept."""
    return changes.publications[-1] if changes.publications else None


def digest_of(params: Params) -> int:
    """The short digest of a model of this task."""
    return base_digest(model_digest(TENSORS.digest, params))


def with_gain(spec: TaskSpec) -> bytes:
    """A specification as it is published."""
    return spec_to_json(msgspec.structs.replace(spec, gain=gain_of(spec.strategy)))
