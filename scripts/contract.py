"""Draw the contract from the message types: schemas/asyncapi.yaml and docs/reference/task.md.

    python -m scripts.contract            write both
    python -m scripts.contract --check    exit 1 when a file is not what the types say

The texts come from the types' docstrings, so that there is one place to mend.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from inspect import cleandoc
from math import log
from pathlib import Path
from typing import Any, Final, get_args

import msgspec
import yaml

from schemas.channels import CHANNELS, Channel
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import NAME_PATTERN
from schemas.task import InitOptions, TaskFile, TaskSpec
from schemas.topics import DEFAULT_PREFIX
from schemas.wire import WIRE, ManifestArray, ReceiptArray, UpdateArray

ROOT: Final = Path(__file__).parents[1]

EXPLAINED: Final[dict[type, type]] = {
    UpdateArray: ModelUpdate,
    ManifestArray: Manifest,
    ReceiptArray: Receipt,
}
"""Where the fields of an array are explained."""

LEVELS: Final = {
    "prefix": ("First levels of every topic, 1 to 3.", DEFAULT_PREFIX),
    "task": (f"The task's name, {NAME_PATTERN}.", None),
    "device": (f"The device's name, {NAME_PATTERN}.", None),
    "shard": ("The first hex digit of SHA-256 over the device's name.", None),
    "blob": ("A blob's name, from the manifest.", None),
    "i": ("Decimal, from 0.", None),
}

_FIELD: Final = re.compile(r"^    (\w+): (.*)$")
_LENGTH: Final = re.compile(r" of length (<=|>=) ")


def explained(kind: type) -> tuple[str, dict[str, str]]:
    """A class' docstring as (its sentence, its fields' texts)."""
    text = cleandoc(kind.__doc__ or "")
    head, _, tail = text.partition("\nAttributes:\n")
    fields: dict[str, str] = {}
    name = ""
    for line in tail.splitlines():
        found = _FIELD.match(line)
        if found:
            name = found[1]
            fields[name] = found[2]
        elif name and line.strip():
            fields[name] += " " + line.strip()
    return " ".join(head.split()), fields


def plain(name: str) -> str:
    """Of `UpdateArray` the name that people know."""
    return name.removesuffix("Array")


# -- AsyncAPI ----------------------------------------------------------------------------------


def asyncapi() -> dict[str, Any]:
    """The whole document, as AsyncAPI 3.0 has it."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "fedmq",
            "version": f"{WIRE}",
            "description": (
                f"Federated learning over MQTT, wire version {WIRE}, seen from the server. "
                "docs/wire.md is the same in prose, with what a device must do. "
                "Fields may be added; what is here keeps its meaning."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "{host}:{port}",
                "protocol": "mqtt",
                "protocolVersion": "3.1.1",
                "description": "Any MQTT broker; TLS and WebSockets as it has them.",
                "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "1883"}},
            }
        },
        "channels": {channel.name: _channel(channel) for channel in CHANNELS},
        "operations": {_verb(channel): _operation(channel) for channel in CHANNELS},
        "components": {
            "messages": {c.name: _message(c) for c in CHANNELS},
            "schemas": _schemas(),
        },
    }


def _channel(channel: Channel) -> dict[str, Any]:
    address = f"{{prefix}}/{{task}}/{channel.suffix}"
    return {
        "address": address,
        "summary": channel.summary,
        "messages": {channel.name: {"$ref": f"#/components/messages/{channel.name}"}},
        "parameters": {level: _parameter(level) for level in re.findall(r"{(\w+)}", address)},
    }


def _parameter(level: str) -> dict[str, Any]:
    text, default = LEVELS[level]
    return {"description": text} | ({} if default is None else {"default": default})


def _verb(channel: Channel) -> str:
    verb = "say" if channel.speaker == "server" else "hear"
    return verb + channel.name.capitalize()


def _operation(channel: Channel) -> dict[str, Any]:
    return {
        "action": "send" if channel.speaker == "server" else "receive",
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": f"Read by {channel.listeners}.",
        "bindings": {"mqtt": {"qos": 1, "retain": channel.retained, "bindingVersion": "0.2.0"}},
    }


def _message(channel: Channel) -> dict[str, Any]:
    kind = channel.payload
    if kind is None:
        bare = {"type": "string", "format": "binary"}
        return {"contentType": "application/octet-stream", "payload": bare}
    packed = kind.__struct_config__.array_like
    return {
        "title": plain(kind.__name__),
        "contentType": "application/msgpack" if packed else "application/json",
        "summary": channel.summary,
        "payload": {"$ref": f"#/components/schemas/{plain(kind.__name__)}"},
    }


def _schemas() -> dict[str, Any]:
    """Every Struct that travels, as JSON Schema draft 7, which AsyncAPI builds on."""
    kinds = [channel.payload for channel in CHANNELS if channel.payload is not None]
    _, found = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    named = {kind.__name__: kind for kind in _all_structs(TaskSpec, *kinds)}
    return {plain(name): _explained(named[name], found[name]) for name in sorted(found)}


def _all_structs(*kinds: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    """These and whatever they are made of."""
    pending, seen = list(kinds), set()
    while pending:
        kind = pending.pop()
        if kind in seen:
            continue
        seen.add(kind)
        yield kind
        for field in msgspec.structs.fields(kind):
            pending += [inner for inner in _leaves_of(field.type) if _is_struct(inner)]


def _leaves_of(annotation: Any) -> Iterator[Any]:
    """The classes within an annotation: `tuple[TensorSpec, ...]` has one."""
    inner = [arg for arg in get_args(annotation) if arg is not Ellipsis]
    if not inner:
        yield annotation
    for each in inner:
        yield from _leaves_of(each)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _explained(kind: type[msgspec.Struct], schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the docstring's texts, and open: a newer peer may add fields."""
    sentence, texts = explained(EXPLAINED.get(kind, kind))
    schema = _draft7(schema) | {"title": plain(kind.__name__), "description": sentence}
    schema.pop("additionalProperties", None)
    for name, inner in schema.get("properties", {}).items():
        if name in texts:
            inner["description"] = texts[name]
    if schema.get("type") == "array":
        for field, inner in zip(kind.__struct_fields__, schema["items"], strict=True):
            inner["title"] = field
            inner["description"] = texts.get(field, f"always {WIRE}")
        schema["items"][0]["const"] = WIRE
        schema["maxItems"] = 16
    return schema


def _draft7(value: Any) -> Any:
    """Without what draft 7 does not know: `prefixItems`, and texts beside a `$ref`."""
    if isinstance(value, list):
        return [_draft7(each) for each in value]
    if not isinstance(value, dict):
        return value
    new = {key: _draft7(inner) for key, inner in value.items()}
    if "prefixItems" in new:
        new["items"] = new.pop("prefixItems")
    if new.get("contentEncoding") == "base64":  # MessagePack's bin, 32 bytes: nothing is encoded
        new = {"type": "string", "format": "binary", "minLength": 32, "maxLength": 32}
    if "$ref" in new and len(new) > 1:
        rest = {key: inner for key, inner in new.items() if key not in {"$ref", "default"}}
        new = {"allOf": [{"$ref": new["$ref"]}], **rest}
    elif "$ref" in new:
        new = {"allOf": [new]}
    return new


# -- the reference of task.toml ----------------------------------------------------------------

_TABLE_HEAD: Final = ("| field | type | default | meaning |", "|---|---|---|---|")

_OPENING: Final = """\
# Reference: task.toml

What `fedmq task create NAME --spec task.toml` reads, and what `fedmq task update NAME --set
TABLE.FIELD=VALUE` changes. Every field has a default; a field that does not exist is refused by
name. The file is drawn from the types (`make contract`): do not edit it.

A task that trains, judges and ends:

```toml
{example}```
"""

EXAMPLE: Final = """\
[strategy]
name = "fedbuff"
buffer_size = 10

[train]
epochs = 2
learning_rate = 0.05

[train.when]
charging = true

[codec]
name = "topk_int8"
density = 0.05

[gate]
metric = "accuracy"
margin = 0.02
canary = 0.1

[finish]
versions = 500
"""

_TENSORS: Final = """
## The tensors

They come from the initial model (`fedmq task create NAME --init model.npz`, its arrays in order) or
from `[[params.tensors]]`, and never change in a task's life. Of the kinds, `trained` is learnt by
the fleet; a `buffer` is measured, not trained (BatchNorm's statistics), and averaged plainly;
`frozen` stays as it was created and is never sent up; of a `local` tensor every device keeps its
own.

| field | type | default | meaning |
|---|---|---|---|
"""


def reference() -> str:
    """docs/reference/task.md."""
    parts = [_OPENING.format(example=EXAMPLE)]
    for table in msgspec.structs.fields(TaskFile):
        if table.name != "params":
            parts += _table(table.name, _struct_of(table.type))
    parts.append(_TENSORS + "\n".join(_rows(_tensor_spec())) + "\n")
    return "\n".join(parts)


def _struct_of(annotation: Any) -> type[msgspec.Struct]:
    found: type[msgspec.Struct] = next(each for each in _leaves_of(annotation) if _is_struct(each))
    return found


def _tensor_spec() -> type[msgspec.Struct]:
    (tensors,) = msgspec.structs.fields(_struct_of(TaskFile.__annotations__["params"]))
    return _struct_of(tensors.type)


def _table(name: str, kind: type[msgspec.Struct]) -> Iterator[str]:
    """One `[table]`, and the tables within it."""
    sentence, _ = explained(kind)
    sentence = sentence.partition(": ")[2]
    note = " Read when the task is made, and not kept." if kind is InitOptions else ""
    yield f"## `[{name}]`\n\n{sentence[0].upper()}{sentence[1:]}{note}\n"
    yield "\n".join([*_TABLE_HEAD, *_rows(kind)]) + "\n"
    for field in msgspec.structs.fields(kind):
        if _is_struct(field.type):
            yield from _table(f"{name}.{field.name}", field.type)


def _rows(kind: type[msgspec.Struct]) -> Iterator[str]:
    _, texts = explained(kind)
    _, found = msgspec.json.schema_components([kind])
    shapes = found[kind.__name__]["properties"]
    for field in msgspec.structs.fields(kind):
        if not _is_struct(field.type):
            default = "" if field.required else f"`{_toml(_default(field))}`"
            text = texts[field.name].replace("|", "\\|")
            yield f"| `{field.name}` | {_type(shapes[field.name])} | {default} | {text} |"


def _default(field: Any) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _toml(value: object) -> str:
    return "none" if value is None else msgspec.json.encode(value).decode()


def _type(shape: dict[str, Any]) -> str:
    """`integer, 1 to 100` for a schema's type and bounds."""
    if "enum" in shape:
        return " or ".join(f"`{each}`" for each in shape["enum"])
    if "anyOf" in shape:
        return " or ".join(_type(each) for each in shape["anyOf"] if each.get("type") != "null")
    names = {"object": "table", "string": "text", "boolean": "truth value", "array": "list"}
    kind = shape.get("type", "text, number or truth value")
    word = names.get(kind, kind)
    low = _bound(shape, "minimum", "exclusiveMinimum", "above ")
    high = _bound(shape, "maximum", "exclusiveMaximum", "below ")
    if low and high:
        if low[0] == "a" or high[0] == "b":
            return f"{word}, {low}, {high if high[0] == 'b' else f'up to {high}'}"
        return f"{word}, {low} to {high}"
    return ", ".join(filter(None, [word, low and f"{low} or more", high and f"up to {high}"]))


def _bound(shape: dict[str, Any], closed: str, open_: str, word: str) -> str:
    if closed in shape:
        return _number(shape[closed])
    return f"{word}{_number(shape[open_])}" if open_ in shape else ""


def _number(value: float) -> str:
    """`65 535`, and the large ones as powers."""
    for base in (2, 10):
        exponent = round(log(value, base)) if value > 1e6 else 0
        if exponent and base**exponent == value:
            return f"{base}^{exponent}"
    return f"{value:,.12g}".replace(",", " ")


# -- files -------------------------------------------------------------------------------------

_NOTE: Final = "# Drawn from schemas/channels.py by `make contract`: do not edit.\n"


def files() -> dict[Path, str]:
    """Every file of the contract, as the types say."""
    document = yaml.safe_dump(asyncapi(), sort_keys=False, width=100, allow_unicode=True)
    return {
        ROOT / "schemas" / "asyncapi.yaml": _NOTE + document,
        ROOT / "docs" / "reference" / "task.md": reference(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Write the files, or check them."""
    parser = argparse.ArgumentParser(prog="contract", description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if stale")
    check = parser.parse_args(arguments).check
    drawn = files()
    stale = [path for path in drawn if not path.exists() or path.read_text() != drawn[path]]
    for path in stale:
        name = path.relative_to(ROOT)
        if check:
            print(f"{name} is not what the types say: run `make contract`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(drawn[path], encoding="utf-8")
            print(f"wrote {name}")
    if check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
