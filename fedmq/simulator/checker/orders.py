"""What a task asks for, as far as the fold obeys it: read from the TaskSpec's JSON.

Refuses (NotCovered) every strategy, codec, kind of tensor, gate and field that the checker does not
know: a field it does not know might mean anything. What only devices obey is passed over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import ceil, log2, prod, sqrt
from typing import Any, Final

from fedmq.simulator.checker.errors import BadLog, NotCovered

SPEC_MAX: Final = 1 << 20
CODECS: Final = {"float32": 0, "topk_int8": 1, "sq": 2, "float16": 3, "int8": 4, "stc": 5}
"""Those that the checker reads."""

CODEC_IDS: Final = range(10)
"""All that there are: an update in one that its task has not asked for is `wrong_codec`."""


_FOR_DEVICES: Final = {
    "train",
    "pace",
    "evaluate",
    "phase",
    "needs",
    "uplink",
    "gain",
    "init",
    "input",
    "bundle",
}
"""What is passed over: the log's own entries tell the phase, and no reports are judged here."""

_KNOWN: Final[dict[str, dict[str, Any]]] = {
    "params": {"tensors": []},
    "strategy": {
        "name": "fedbuff",
        "buffer_size": 10,
        "server_lr": 1.0,
        "momentum": 0.0,
        "alpha": 0.6,
        "staleness": {},
        "max_staleness": 64,
        "views": 16,
        "flush_after_s": 60.0,
        "examples_unit": 0,
        "divide_by": "buffer_size",
        "fairness": 0.0,
        "fleet_size": 0,
        "contributions_max": 1,
        "adam": {},
        "robust": {},
    },
    "codec": {"name": "sq", "density": 0.05, "checksum": False},
    "publish": {
        "every": 1,
        "seconds": 0.0,
        "chunk_bytes": 4096,
        "keep": 8,
        "lattice": False,
        "step": 0.0,
    },
    "limits": {"max_update_bytes": 0, "max_abs": 1e6},
    "gate": {
        "metric": "",
        "better": "higher",
        "margin": 0.0,
        "by": "devices",
        "canary": 0.0,
        "patience_s": 600.0,
        "on_silence": "publish",
        "on_worse": "hold",
    },
    "finish": {
        "versions": 0,
        "seconds": 0.0,
        "payload_bytes": 0,
        "metric": "",
        "patience": 10,
        "min_delta": 0.0,
        "better": "higher",
        "by": "devices",
    },
}
"""Every field that the fold knows, with its default (docs/wire.md, section 8)."""

_STALENESS: Final[dict[str, Any]] = {"kind": "paper", "a": 0.5, "b": 4.0}

_ROBUST: Final[dict[str, Any]] = {
    "max_norm": 0.0,
    "guard": "none",
    "guard_radius": 1.5,
    "zeno_rho": 0.002,
    "zeno_slack": 0.1,
    "clip": "none",
    "clip_norm": 0.0,
    "mix": "none",
    "rule": "mean",
    "byzantine": 0,
    "rounds": 8,
}

_PLAIN: Final = {
    "strategy.robust": ("max_norm", "guard", "clip", "mix", "rule"),
    "strategy": ("divide_by", "fairness", "contributions_max"),
}
"""What must be as it is by default: the rest of the table then means nothing."""


@dataclass(frozen=True, slots=True)
class Orders:
    """The task's will from one specification to the next. Times are in milliseconds; 0 is never.

    Attributes:
        tensors: the 32 bytes of spec_digest.
        sizes: parameters of each tensor.
        exponents: of the lattice that is asked for, one a tensor; None: none is.
        buffer_size: FedBuff's K.
        server_lr: FedBuff's eta.
        momentum: FedBuff's beta.
        staleness: `constant`, `polynomial` or `hinge`, with its `a` and `b`.
        max_staleness: in versions.
        flush_ms: how long a buffer waits.
        examples_unit: 0 makes the number of examples weigh nothing.
        codec: the id of the codec that is asked for.
        checksum: whether updates must be sealed.
        publish_every: in versions.
        publish_ms: publish at the latest after so long.
        max_bytes: of a whole message.
        max_abs: of a coordinate.
        finish_versions: done at this version.
        finish_ms: done so long after the first entry.
        finish_bytes: done when so many payload bytes are folded.
    """

    tensors: bytes
    sizes: tuple[int, ...]
    exponents: tuple[int, ...] | None
    buffer_size: int
    server_lr: float
    momentum: float
    staleness: tuple[str, float, float]
    max_staleness: int
    flush_ms: int
    examples_unit: int
    codec: int
    checksum: bool
    publish_every: int
    publish_ms: int
    max_bytes: int
    max_abs: float
    finish_versions: int
    finish_ms: int
    finish_bytes: int

    @property
    def size(self) -> int:
        """Parameters."""
        return sum(self.sizes)

    def weight(self, stale: int, examples: int) -> float:
        """How much an update counts: a fresh one exactly 1, unless its examples say less."""
        kind, a, b = self.staleness
        if kind == "polynomial":
            weight = float((1 + stale) ** -a)
        elif kind == "hinge" and stale > b:
            weight = 1.0 / (a * (stale - b) + 1.0)
        else:
            weight = 1.0
        if self.examples_unit:
            weight *= min(examples, self.examples_unit) / self.examples_unit
        return weight


def read_orders(data: bytes) -> Orders:
    """Read a specification. Raises BadLog, NotCovered."""
    tables = _tables(data)
    strategy, codec = tables["strategy"], tables["codec"]
    publish, limits, finish = tables["publish"], tables["limits"], tables["finish"]
    staleness = _complete("strategy.staleness", strategy["staleness"], _STALENESS)
    if strategy["name"] != "fedbuff":
        raise NotCovered(f"strategy {strategy['name']!r}")
    if codec["name"] not in CODECS:
        raise NotCovered(f"codec {codec['name']!r}")
    if staleness["kind"] == "paper":
        staleness |= {"kind": "polynomial", "a": 0.5}
    if staleness["kind"] not in {"constant", "polynomial", "hinge"}:
        raise NotCovered(f"staleness {staleness['kind']!r}")
    robust = _complete("strategy.robust", strategy["robust"], _ROBUST)
    for table, found, known in (
        ("strategy", strategy, _KNOWN["strategy"]),
        ("strategy.robust", robust, _ROBUST),
    ):
        for name in _PLAIN[table]:
            if found[name] != known[name]:
                raise NotCovered(f"{table}.{name} = {found[name]!r}")
    if tables["gate"]["metric"] or tables["gate"]["canary"]:
        raise NotCovered("a gate")
    if finish["metric"]:
        raise NotCovered("a task that is finished by a metric")
    digest, shapes = _tensors(tables["params"]["tensors"])
    return Orders(
        tensors=digest,
        sizes=tuple(map(prod, shapes)),
        exponents=_exponents(shapes, float(publish["step"])) if publish["lattice"] else None,
        buffer_size=strategy["buffer_size"],
        server_lr=float(strategy["server_lr"]),
        momentum=float(strategy["momentum"]),
        staleness=(staleness["kind"], float(staleness["a"]), float(staleness["b"])),
        max_staleness=strategy["max_staleness"],
        flush_ms=_ms(strategy["flush_after_s"]),
        examples_unit=strategy["examples_unit"],
        codec=CODECS[codec["name"]],
        checksum=codec["checksum"],
        publish_every=publish["every"],
        publish_ms=_ms(publish["seconds"]),
        max_bytes=limits["max_update_bytes"] or 8 * sum(map(prod, shapes)) + 4096,
        max_abs=float(limits["max_abs"]),
        finish_versions=finish["versions"],
        finish_ms=_ms(finish["seconds"]),
        finish_bytes=finish["payload_bytes"],
    )


def _ms(seconds: float) -> int:
    return round(float(seconds) * 1000)


def _tables(data: bytes) -> dict[str, dict[str, Any]]:
    """Every table that the fold knows, complete with its defaults."""
    if len(data) > SPEC_MAX:
        raise BadLog(f"a specification of {len(data)} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise BadLog("a specification that is not JSON") from exc
    if not isinstance(found, dict):
        raise BadLog("a specification that is not a JSON object")
    unknown = sorted(found.keys() - _KNOWN.keys() - _FOR_DEVICES)
    if unknown:
        raise NotCovered(f"the field {unknown[0]} of a specification")
    return {name: _complete(name, found.get(name, {}), known) for name, known in _KNOWN.items()}


def _complete(name: str, found: object, known: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise BadLog(f"{name} of a specification is not an object")
    unknown = sorted(found.keys() - known.keys())
    if unknown:
        raise NotCovered(f"the field {name}.{unknown[0]} of a specification")
    return {**known, **found}


def _tensors(tensors: list[dict[str, Any]]) -> tuple[bytes, list[list[int]]]:
    """spec_digest, and the tensors' shapes (docs/wire.md, section 6)."""
    lines, shapes = b"", []
    for tensor in tensors:
        plain = _complete("params.tensors", tensor, {"name": "", "shape": [], "kind": "trained"})
        if plain["kind"] != "trained":
            raise NotCovered(f"a tensor of kind {plain['kind']!r}")
        shape = plain["shape"]
        lines += plain["name"].encode() + b"\0" + ",".join(map(str, shape)).encode() + b"\n"
        shapes.append(shape)
    if not shapes:
        raise BadLog("a specification without tensors")
    return sha256(lines).digest(), shapes


def _exponents(shapes: list[list[int]], step: float) -> tuple[int, ...]:
    """Exponents m of the tensors, whose steps are 2^-m: of `step` for all, or by shape.

    By shape: the highest power of two that is at most 0.4 sqrt(2 / (fan_in + fan_out)). A vector
    has the step of the last matrix before it, else of the first behind it, else 2^-5.
    """
    if step:
        return (round(-log2(step)),) * len(shapes)
    own = [_by_fans(shape) if len(shape) > 1 else None for shape in shapes]
    last = next((m for m in own if m is not None), 5)
    found = []
    for m in own:
        last = last if m is None else m
        found.append(last)
    return tuple(found)


def _by_fans(shape: list[int]) -> int:
    fans = (shape[0] + shape[1]) * prod(shape[2:])
    return min(24, ceil(-log2(0.4 * sqrt(2 / fans))))
