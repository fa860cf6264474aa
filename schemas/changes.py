"""A TaskSpec with some of its fields changed, as people say it: `strategy.server_lr=0.5`. Pure."""

import tomllib
from collections.abc import Iterable
from operator import lt
from typing import Any

import msgspec

from schemas.errors import ConfigError
from schemas.lattice import first_exponents
from schemas.task import TaskFile, TaskSpec, checked_spec, convert


def changed_spec(spec: TaskSpec, assignments: Iterable[str]) -> TaskSpec:
    """Apply `table.field=value` texts; a value is TOML, or else plain text.

    Raises:
        ConfigError: naming the field: unknown, impossible, or one that never changes.
    """
    tables: dict[str, Any] = msgspec.to_builtins(spec)
    for text in assignments:
        path, equals, value = text.partition("=")
        names = path.strip().split(".")
        if not equals or not all(names):
            raise ConfigError("set", f"{text!r} must be TABLE.FIELD=VALUE, as in train.epochs=3")
        if names[0] in {"params", "init", "phase", "gain", "needs", "bundle"}:
            remedy = "cannot be set: a task keeps its tensors and initial model; see task --help"
            raise ConfigError(names[0], remedy)
        _assign(tables, names, _value(value.strip()))
    return _walks_on(spec, checked_spec(convert(tables, TaskSpec)))


def replaced_spec(spec: TaskSpec, file: TaskFile) -> TaskSpec:
    """The specification of a file for the same tensors. Raises ConfigError."""
    if file.params is not None and file.params != spec.params:
        remedy = "a task cannot change its tensors; make another task (fedmq task create)"
        raise ConfigError("params", remedy)
    made = file.spec(spec.params, bundle=spec.bundle)
    fresh = msgspec.structs.replace(made, init=spec.init)
    return _walks_on(spec, fresh)


def _walks_on(old: TaskSpec, new: TaskSpec) -> TaskSpec:
    """The new specification, if the published model can go on with it. Raises ConfigError."""
    if not old.publish.lattice or not new.publish.lattice:
        return new
    before, after = (first_exponents(old.params, each.publish.step) for each in (old, new))
    if any(map(lt, after, before)):
        remedy = "can only be halved while publish.lattice is on; switch it off first"
        raise ConfigError("publish.step", f"{new.publish.step:g} is a larger step: it {remedy}")
    if old.publish.chunk_bytes != new.publish.chunk_bytes:
        remedy = "stays as it is while publish.lattice is on: diffs on the broker have it"
        raise ConfigError("publish.chunk_bytes", remedy)
    return new


def differences(old: TaskSpec, new: TaskSpec) -> list[tuple[str, object, object]]:
    """Every field that differs, as (dotted name, old, new), sorted."""
    before, after = (
        dict(_leaves("", msgspec.to_builtins(old))),
        dict(_leaves("", msgspec.to_builtins(new))),
    )
    names = sorted(before.keys() | after.keys())
    found = [(name, before.get(name), after.get(name)) for name in names]
    return [each for each in found if each[1] != each[2]]


def _assign(tables: dict[str, Any], names: list[str], value: object) -> None:
    table = tables
    for depth, name in enumerate(names[:-1]):
        inner = table.get(name)
        if not isinstance(inner, dict):
            raise ConfigError(".".join(names[: depth + 1]), "is no table of a task")
        table = inner
    table[names[-1]] = value


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _leaves(name: str, value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}".lstrip("."), inner)
    else:
        yield name, value
