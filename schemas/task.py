"""The TaskSpec: what a fleet trains and how. Retained as JSON on the broker, true in the log.

Written by people as TOML, so every refusal names the field and the remedy (ConfigError).
"""

import re
import tomllib
from math import isfinite
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec

from schemas.codecs import CodecOptions, codec_by_name
from schemas.errors import ConfigError
from schemas.params import ParamSpec

Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
NonNegative: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Share: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=1)]
Option: TypeAlias = str | int | float | bool
_Struct = TypeVar("_Struct", bound=msgspec.Struct)

_MISSING: Final = re.compile(r"Object missing required field `(.+)`")

SPEC_BYTES_MAX: Final = 1 << 20
"""The largest TaskSpec that is read, in bytes of JSON."""


class StalenessOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[strategy.staleness]`: the staleness weight and its parameters (FedAsync, section 5.2)."""

    kind: Literal["constant", "polynomial", "hinge"] = "polynomial"
    a: Positive = 0.5
    b: NonNegative = 4.0


class StrategyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[strategy]`: how updates become versions.

    Attributes:
        name: `fedbuff` or `fedasync`.
        buffer_size: FedBuff's K.
        server_lr: FedBuff's eta_g.
        momentum: FedBuff's server momentum beta, in [0, 0.9999].
        alpha: FedAsync's mixing rate, in (0, 1].
        staleness: the staleness weight.
        max_staleness: an update staler than this many versions is refused.
        views: FedAsync keeps this many published models; an older base is refused.
        flush_after_s: a buffer that has waited so long is folded in part; 0 never does.
        examples_unit: 0 makes num_examples weigh nothing; otherwise an update weighs
            min(num_examples, examples_unit) / examples_unit of its staleness weight.
    """

    name: Literal["fedbuff", "fedasync"] = "fedbuff"
    buffer_size: Count = 10
    server_lr: Positive = 1.0
    momentum: Annotated[float, msgspec.Meta(ge=0, le=0.9999)] = 0.0
    alpha: Share = 0.6
    staleness: StalenessOptions = StalenessOptions()
    max_staleness: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 64
    views: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    flush_after_s: NonNegative = 60.0
    examples_unit: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0


class TrainOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[train]`: what the trainer on the device is asked to do.

    Attributes:
        epochs: passes over the local data in one round.
        batch_size: examples per step.
        learning_rate: the local optimiser's.
        rounds_per_base: rounds on one base at most, while the update is still unsent.
        options: whatever else a custom trainer understands.
    """

    epochs: Count = 1
    batch_size: Count = 16
    learning_rate: Positive = 0.1
    rounds_per_base: Count = 4
    options: dict[str, Option] = {}


class PublishOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[publish]`: when a version leaves the server, and in what pieces.

    Attributes:
        every: publish when this many versions have passed.
        seconds: publish at the latest after so many seconds when there is something new; 0: never.
        chunk_bytes: bytes a chunk.
    """

    every: Count = 1
    seconds: NonNegative = 0.0
    chunk_bytes: Annotated[int, msgspec.Meta(ge=64, le=1 << 20)] = 4096


class LimitOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[limits]`: bounds on what devices may send.

    Attributes:
        max_update_bytes: a larger update is refused; 0 means twice the dense model and 4 KiB.
        max_abs: a delta with a coordinate beyond this magnitude is refused.
    """

    max_update_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 0
    max_abs: Annotated[float, msgspec.Meta(gt=0, le=1e12)] = 1e6


class TaskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a device must know of a task but the model itself."""

    params: ParamSpec
    strategy: StrategyOptions = StrategyOptions()
    train: TrainOptions = TrainOptions()
    codec: CodecOptions = CodecOptions()
    publish: PublishOptions = PublishOptions()
    limits: LimitOptions = LimitOptions()

    @property
    def max_update_bytes(self) -> int:
        """The bound that holds, in bytes of the whole message."""
        return self.limits.max_update_bytes or 8 * self.params.size + 4096


class InitOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[init]`: how the initial model is drawn when no file is given.

    Attributes:
        kind: `glorot` (uniform for matrices, zero for vectors) or `zeros`.
        seed: of the generator.
    """

    kind: Literal["glorot", "zeros"] = "glorot"
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0


class TaskFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A task.toml: a TaskSpec of which `params` may come from the initial model instead."""

    params: ParamSpec | None = None
    strategy: StrategyOptions = StrategyOptions()
    train: TrainOptions = TrainOptions()
    codec: CodecOptions = CodecOptions()
    publish: PublishOptions = PublishOptions()
    limits: LimitOptions = LimitOptions()
    init: InitOptions = InitOptions()

    def spec(self, params: ParamSpec) -> TaskSpec:
        """Complete the specification with the model's tensors."""
        return checked_spec(
            TaskSpec(params, self.strategy, self.train, self.codec, self.publish, self.limits)
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
        field = field or "the file"
        raise ConfigError(field, what[0].lower() + what[1:]) from exc


def read_task_file(text: str) -> TaskFile:
    """Read a task.toml. Raises ConfigError."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError("the file", f"is not TOML: {exc}") from exc
    return convert(tables, TaskFile)


def checked_spec(spec: TaskSpec) -> TaskSpec:
    """Check what the types alone cannot. Raises ConfigError."""
    codec_by_name(spec.codec.name)
    if not 0 < spec.codec.density <= 1:
        raise ConfigError("codec.density", "must be above 0 and at most 1")
    if spec.publish.every > max(1, spec.strategy.max_staleness):
        remedy = "must not exceed strategy.max_staleness: every update would be too stale"
        raise ConfigError("publish.every", remedy)
    for name, value in spec.train.options.items():
        if isinstance(value, float) and not isfinite(value):
            raise ConfigError(f"train.options.{name}", "must be finite: JSON knows no other number")
    return spec


def spec_to_json(spec: TaskSpec) -> bytes:
    """Write the retained JSON."""
    return msgspec.json.encode(spec)


def spec_from_json(data: bytes) -> TaskSpec:
    """Read the retained JSON. Raises ConfigError."""
    if len(data) > SPEC_BYTES_MAX:
        raise ConfigError("spec", f"{len(data)} bytes are more than {SPEC_BYTES_MAX}")
    try:
        tables = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError("spec", f"is not JSON: {exc}") from exc
    return checked_spec(convert(tables, TaskSpec))
