"""The TaskSpec: what a fleet trains and how. Retained as JSON on the broker, true in the log.

Written by people as TOML, so every refusal names the field and the remedy (ConfigError).
"""

import re
import tomllib
from math import isfinite
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec.inspect import StructType, Type, UnionType, VarTupleType, type_info

from schemas.bundle import BundleRef
from schemas.codecs import CodecOptions, codec_by_name
from schemas.conditions import Conditions
from schemas.errors import ConfigError
from schemas.evaluation import Better
from schemas.inputs import InputOptions
from schemas.lattice import check_step
from schemas.pace import PaceOptions
from schemas.params import ParamSpec
from schemas.seal import SEAL_BYTES
from schemas.strategy import (
    Count,
    NonNegative,
    Positive,
    StrategyOptions,
    check_strategy,
)
from schemas.uplink import SHORT_HEADER_MAX, read_uplink

ShareOrNone: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]
Metric: TypeAlias = Annotated[str, msgspec.Meta(max_length=31)]
Uplink: TypeAlias = Annotated[str, msgspec.Meta(max_length=64)]
Phase: TypeAlias = Literal["running", "paused", "finished"]
Option: TypeAlias = str | int | float | bool
_Struct = TypeVar("_Struct", bound=msgspec.Struct)

_MISSING: Final = re.compile(r"Object missing required field `(.+)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.+)`")

UNDERSTOOD: Final = ("kinds", "when", "checksum", "uplink", "lattice", "bundle")
"""What this version understands of a task's `needs`."""

_FOR_DEVICES: Final = (
    "params",
    "train",
    "pace",
    "codec",
    "limits",
    "evaluate",
    "gate",
    "phase",
    "uplink",
    "gain",
    "init",
    "publish",
    "input",
    "bundle",
)

REPORT_BYTES: Final = 256
"""A message bound below this leaves no room for what a device has measured: loss, and one metric of
the base, with a header that takes a quarter of it at most."""

SPEC_BYTES_MAX: Final = 1 << 20
"""The largest TaskSpec that is read, in bytes of JSON."""


class PersonalOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[train.personal]`: what a device makes of the global model for itself, and never sends.

    Attributes:
        method: `none`; `finetune`: after a round it trains the global model on for itself; `ditto`:
            it keeps a model of its own that the global one pulls at (Li et al., ICML 2021). A body
            that is shared below a head that is not (FedPer, FedRep) is a matter of the tensors'
            kinds: give the head kind `local`.
        head: names of the tensors that `finetune` trains; none: all of them. With `head_epochs` a
            device names the `local` tensors here for its trainer.
        epochs: passes over the local data.
        learning_rate: of these passes; 0: that of [train].
        pull: ditto's lambda.
        head_epochs: FedRep: so many passes with only the `local` tensors moving, before [train]'s
            passes with only the others moving; 0: all move together (FedPer).
    """

    method: Literal["none", "finetune", "ditto"] = "none"
    head: tuple[str, ...] = ()
    epochs: Count = 1
    learning_rate: NonNegative = 0.0
    pull: NonNegative = 0.3
    head_epochs: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0


class TrainOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[train]`: what the trainer on the device is asked to do.

    Attributes:
        epochs: passes over the local data in one round.
        batch_size: examples per step.
        learning_rate: the local optimiser's.
        rounds_per_base: rounds on one base at most, while the update is still unsent.
        steps: at most so many local steps in a round; 0: no bound.
        seconds: a round ends after the step in which so many seconds have passed; 0: no bound.
        joules: a round's energy; a device turns it into seconds by its own `watts`; 0: no bound.
        when: what must hold on a device before it trains.
        personal: what it makes of the model for itself.
        options: whatever else a custom trainer understands.
    """

    epochs: Count = 1
    batch_size: Count = 16
    learning_rate: Positive = 0.1
    rounds_per_base: Count = 4
    steps: Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)] = 0
    seconds: NonNegative = 0.0
    joules: NonNegative = 0.0
    when: Conditions = Conditions()
    personal: PersonalOptions = PersonalOptions()
    options: dict[str, Option] = {}


class PublishOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[publish]`: when a version leaves the server, and in what pieces.

    Attributes:
        every: publish when this many versions have passed.
        seconds: publish at the latest after so many seconds when there is something new; 0: never.
        chunk_bytes: bytes a chunk.
        keep: published versions whose parameters are kept, to pin, compare or roll back to.
        lattice: publish whole numbers of steps: few bytes from any version to any later one.
        step: the lattice's, for all tensors: a power of two, which may later be made smaller; 0: by
            the shape of each tensor.
    """

    every: Count = 1
    seconds: NonNegative = 0.0
    chunk_bytes: Annotated[int, msgspec.Meta(ge=64, le=1 << 20)] = 4096
    keep: Annotated[int, msgspec.Meta(ge=2, le=256)] = 8
    lattice: bool = False
    step: Annotated[float, msgspec.Meta(ge=0, le=65_536)] = 0.0


class LimitOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: bounds on what devices may send.

    Attributes:
        max_update_bytes: a larger update is refused; 0 means twice the dense model and 4 KiB.
        max_abs: a delta with a coordinate beyond this magnitude is refused.
    """

    max_update_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    max_abs: Annotated[float, msgspec.Meta(gt=0, le=1e12)] = 1e6


class EvaluateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[evaluate]`: devices measure the model they adopt on held-out examples of their own.

    Attributes:
        devices: whether they are asked to; a trainer without `evaluate` never does.
        min_devices: a mean is shown and judged by only when so many devices have reported.
    """

    devices: bool = True
    min_devices: Count = 3


class GateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[gate]`: a version that is worse than the last is held back from publication.

    Attributes:
        metric: which one decides, e.g. `accuracy`; empty: no gate, every version is published.
        better: which way this metric gets better.
        margin: how much worse than the last published version a version may be.
        by: `devices` (those of the canary share report) or `server` (its own held-out set).
        canary: this share of the fleet gets a new version first.
        patience_s: a version about which too little is known after so long ...
        on_silence: ... is published (`publish`) or held back (`hold`).
        on_worse: `hold`: wait for a better one; `rollback`: go back to the last published model.
    """

    metric: Metric = ""
    better: Better = "higher"
    margin: NonNegative = 0.0
    by: Literal["devices", "server"] = "devices"
    canary: ShareOrNone = 0.0
    patience_s: NonNegative = 600.0
    on_silence: Literal["publish", "hold"] = "publish"
    on_worse: Literal["hold", "rollback"] = "hold"

    @property
    def holds(self) -> bool:
        """Whether a version waits for anything before everybody gets it."""
        return bool(self.metric) or self.canary > 0


class FinishOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[finish]`: when the task is done by itself; whatever comes first. 0 and "" mean never.

    Attributes:
        versions: at this version.
        seconds: so long after the task's first entry.
        payload_bytes: when so many payload bytes have been folded.
        metric: when this metric has not become better ...
        patience: ... for so many published versions in a row,
        min_delta: where better means by more than this,
        better: and `higher` or `lower` says which way;
        by: as `devices` or `server` found it.
    """

    versions: Annotated[int, msgspec.Meta(ge=0, le=1 << 32)] = 0
    seconds: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    payload_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    metric: Metric = ""
    patience: Count = 10
    min_delta: NonNegative = 0.0
    better: Better = "higher"
    by: Literal["devices", "server"] = "devices"


class InitOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[init]`: how the initial model is drawn when no file is given.

    Attributes:
        kind: `glorot` (uniform for matrices, zero for vectors) or `zeros`.
        seed: of the generator.
    """

    kind: Literal["glorot", "zeros"] = "glorot"
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a device must know of a task but the model itself.

    Attributes:
        params: names, shapes and kinds of the tensors.
        uplink: what a device may send: "222 B" a message, "20 kB/day", both, or the name of a link
            (`schemas.uplink`); empty: no bound. Updates then have the short header.
        phase: where the task is in its life; written by the server alone.
        gain: by how much one fresh update is multiplied before it is added to the model; written by
            the server alone. Unbiased codecs hold themselves down by it.
        init: how the initial model was drawn, so that a device draws it too; none when it came from
            a file.
        needs: what a device must understand to take part; written by the server alone.
        input: what of a device's data the model is fed; left out of the JSON when it says nothing.
        bundle: the graphs that a device trains the model with; none: it brings a trainer of its
            own. Left out of the JSON when there is none.
    """

    params: ParamSpec
    strategy: StrategyOptions = StrategyOptions()
    train: TrainOptions = TrainOptions()
    pace: PaceOptions = PaceOptions()
    codec: CodecOptions = CodecOptions()
    publish: PublishOptions = PublishOptions()
    limits: LimitOptions = LimitOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    gate: GateOptions = GateOptions()
    finish: FinishOptions = FinishOptions()
    uplink: Uplink = ""
    phase: Phase = "running"
    gain: Annotated[float, msgspec.Meta(ge=0, le=1e12)] = 0.0
    init: InitOptions | None = None
    needs: tuple[str, ...] = ()
    input: InputOptions = InputOptions()
    bundle: BundleRef | None = None

    @property
    def max_update_bytes(self) -> int:
        """The bound that holds, in bytes of the whole message."""
        return self.limits.max_update_bytes or 8 * self.params.wire_size + 4096


class TaskFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task.toml: a TaskSpec of which `params` may come from the initial model instead.

    Attributes:
        uplink: what a device may send: "222 B" a message, "20 kB/day", both with a comma, or the
            name of a link ("nb-iot", "lora-dr5"); empty: no bound.
    """

    params: ParamSpec | None = None
    strategy: StrategyOptions = StrategyOptions()
    train: TrainOptions = TrainOptions()
    pace: PaceOptions = PaceOptions()
    codec: CodecOptions = CodecOptions()
    publish: PublishOptions = PublishOptions()
    limits: LimitOptions = LimitOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    gate: GateOptions = GateOptions()
    finish: FinishOptions = FinishOptions()
    uplink: Uplink = ""
    init: InitOptions = InitOptions()
    input: InputOptions = InputOptions()

    def spec(
        self, params: ParamSpec, *, drawn: bool = False, bundle: BundleRef | None = None
    ) -> TaskSpec:
        """Complete the specification with the model's tensors. Raises ConfigError.

        Args:
            params: the tensors.
            drawn: whether the initial model was drawn as `init` says, and came from no file.
            bundle: what devices train it with, if they are given that.
        """
        return checked_spec(
            TaskSpec(
                params=params,
                strategy=self.strategy,
                train=self.train,
                pace=self.pace,
                codec=self.codec,
                publish=self.publish,
                limits=self.limits,
                evaluate=self.evaluate,
                gate=self.gate,
                finish=self.finish,
                uplink=self.uplink,
                init=self.init if drawn else None,
                input=self.input,
                bundle=bundle,
            )
        )


def convert(tables: object, kind: type[_Struct], *, strict: bool = True) -> _Struct:
    """Turn plain tables into a Struct. Raises ConfigError naming the field and the remedy."""
    try:
        return msgspec.convert(tables, kind, strict=strict)
    except msgspec.ValidationError as exc:
        what, _, where = str(exc).partition(" - at `$")
        field = where.rstrip("`").lstrip(".")
        missing = _MISSING.fullmatch(what)
        if missing:
            name = ".".join(filter(None, (field, missing[1])))
            raise ConfigError(name, "is missing; it has no default") from exc
        unknown = _UNKNOWN.fullmatch(what)
        if unknown:
            name = ".".join(filter(None, (field, unknown[1])))
            known = ", ".join(_names_at(type_info(kind), field))
            raise ConfigError(name, f"does not exist; there are {known}") from exc
        field = field or "the file"
        raise ConfigError(field, what[0].lower() + what[1:]) from exc


def _names_at(info: Type, path: str) -> list[str]:
    """The fields of the struct that lies at a path such as `params.tensors[0]`."""
    for name in filter(None, re.sub(r"\[\d*\]", "", path).split(".")):
        info = _struct_in(info)
        if isinstance(info, StructType):
            info = next(field.type for field in info.fields if field.encode_name == name)
    found = _struct_in(info)
    return [f.encode_name for f in found.fields] if isinstance(found, StructType) else []


def _struct_in(info: Type) -> Type:
    """What a list or a choice is made of, as far as it is a struct."""
    if isinstance(info, VarTupleType):
        return _struct_in(info.item_type)
    if isinstance(info, UnionType):
        return next((t for t in info.types if isinstance(t, StructType)), info)
    return info


def read_task_file(text: str) -> TaskFile:
    """Read a task.toml. Raises ConfigError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError("the file", f"is not TOML: {exc}") from exc
    return convert(tables, TaskFile)


def checked_spec(spec: TaskSpec) -> TaskSpec:
    """Check what the types alone cannot. Raises ConfigError."""
    _check_uplink(spec)
    check_strategy(
        spec.strategy, sparse=codec_by_name(spec.codec.name).sparse, size=spec.params.wire_size
    )
    check_step(spec.publish.step)
    _check_personal(spec)
    if not 0 < spec.codec.density <= 1:
        raise ConfigError("codec.density", "must be above 0 and at most 1")
    if spec.publish.every > max(1, spec.strategy.staleness_bound):
        bound = "1 in rounds" if spec.strategy.synchronous else "strategy.max_staleness"
        remedy = f"must not exceed {bound}: every update would be too stale"
        raise ConfigError("publish.every", remedy)
    for name, value in spec.train.options.items():
        if isinstance(value, float) and not isfinite(value):
            raise ConfigError(f"train.options.{name}", "must be finite: JSON knows no other number")
    if spec.gate.holds and spec.strategy.synchronous:
        remedy = f'must be left out with strategy.name = "{spec.strategy.name}": a version that is'
        raise ConfigError("gate", f"{remedy} held back would end its rounds")
    if spec.gate.metric and spec.gate.by == "devices" and not spec.gate.canary:
        remedy = 'must be above 0: with gate.by = "devices" somebody must try a version first'
        raise ConfigError("gate.canary", remedy)
    return msgspec.structs.replace(spec, needs=_needs(spec))


def _check_personal(spec: TaskSpec) -> None:
    """What a device makes of the model for itself must be possible with these tensors."""
    personal, table = spec.train.personal, "train.personal"
    kinds = {tensor.name: tensor.kind for tensor in spec.params.tensors}
    unknown = sorted(set(personal.head) - kinds.keys())
    if unknown:
        known = ", ".join(sorted(kinds))
        raise ConfigError(f"{table}.head", f"{unknown[0]!r} is no tensor; there are {known}")
    if personal.head and personal.method != "finetune":
        remedy = 'goes unheard without method = "finetune"; with head_epochs the kinds tell'
        raise ConfigError(f"{table}.head", remedy)
    if personal.head_epochs and personal.method != "none":
        remedy = f'is a way of its own: leave it out, or method = "{personal.method}"'
        raise ConfigError(f"{table}.head_epochs", remedy)
    if personal.head_epochs and not {"local", "trained"} <= set(kinds.values()):
        remedy = "needs tensors of both kinds: `local` ones, and `trained` ones that all share"
        raise ConfigError(f"{table}.head_epochs", remedy)


def _check_uplink(spec: TaskSpec) -> None:
    """The codec must be able to keep to the budget, with the longest header there is."""
    budget = read_uplink(spec.uplink).message_bytes
    least = codec_by_name(spec.codec.name).least_bytes(spec.params.wire_size) + SHORT_HEADER_MAX
    least += SEAL_BYTES if spec.codec.checksum else 0
    if 0 < budget < REPORT_BYTES:
        for table, judged in (("gate", spec.gate), ("finish", spec.finish)):
            if judged.metric and judged.by == "devices":
                remedy = f'messages of {budget} B carry no metrics: use "server", or allow'
                raise ConfigError(f"{table}.by", f"{remedy} {REPORT_BYTES} B")
    if 0 < budget < least:
        remedy = f'codec.name = "{spec.codec.name}" needs {least} B here; "sq" fits any budget'
        raise ConfigError("uplink", f"{spec.uplink!r} is too small: {remedy}")


def _needs(spec: TaskSpec) -> tuple[str, ...]:
    """What a device must obey, or leave the task alone: it would do harm, not just less."""
    masked = any(tensor.kind != "trained" for tensor in spec.params.tensors)
    conditional = spec.train.when != Conditions()
    found = {
        "kinds": masked,
        "when": conditional,
        "checksum": spec.codec.checksum,
        "uplink": bool(spec.uplink),
        "lattice": spec.publish.lattice,
        "bundle": spec.bundle is not None,
    }
    return tuple(need for need in UNDERSTOOD if found[need])


def spec_to_json(spec: TaskSpec) -> bytes:
    """Write the retained JSON."""
    tables = msgspec.to_builtins(spec)
    if spec.input == InputOptions():
        del tables["input"]
    if spec.bundle is None:
        del tables["bundle"]
    return msgspec.json.encode(tables)


def spec_from_json(data: bytes) -> TaskSpec:
    """Read a log entry's JSON, all of it: an unknown field is refused. Raises ConfigError."""
    return checked_spec(convert(_json_tables(data), TaskSpec))


def device_spec_from_json(data: bytes) -> TaskSpec:
    """Read the retained JSON as a device does: only what a device obeys, and no unknown field.

    So a device understands every newer server, unless the task `needs` what the device does not
    know. Raises ConfigError.
    """
    tables = _json_tables(data)
    if not isinstance(tables, dict):
        raise ConfigError("spec", "is not a JSON object")
    needs = tables.get("needs", [])
    if not isinstance(needs, list):
        raise ConfigError("needs", "is not a list of words")
    unknown = sorted({str(need) for need in needs} - set(UNDERSTOOD))
    if unknown:
        raise ConfigError("needs", f"{', '.join(unknown)}: update fedmq on this device")
    found = {name: tables[name] for name in _FOR_DEVICES if name in tables}
    if isinstance(found.get("gate"), dict):
        found["gate"] = {"canary": found["gate"].get("canary", 0.0)}
    if isinstance(found.get("publish"), dict):
        found["publish"] = {"lattice": found["publish"].get("lattice", False)}
    return checked_spec(convert(_pruned(found, type_info(TaskSpec)), TaskSpec))


def _json_tables(data: bytes) -> object:
    if len(data) > SPEC_BYTES_MAX:
        raise ConfigError("spec", f"{len(data)} bytes are more than {SPEC_BYTES_MAX}")
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError("spec", f"is not JSON: {exc}") from exc


def _pruned(value: object, info: Type) -> object:
    """Without the fields that this version does not know, at any depth of structs."""
    info = _struct_in(info) if isinstance(info, UnionType) else info
    if isinstance(info, StructType) and isinstance(value, dict):
        fields = {field.encode_name: field.type for field in info.fields}
        return {k: _pruned(v, fields[k]) for k, v in value.items() if k in fields}
    if isinstance(info, VarTupleType) and isinstance(value, list):
        return [_pruned(item, info.item_type) for item in value]
    return value
