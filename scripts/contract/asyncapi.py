"""The topics and their messages as an AsyncAPI 3.0 document."""

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from schemas.arrays import WIRE
from schemas.asking import AskArray, Question, Reply, ReplyArray
from schemas.channels import CHANNELS, Channel
from schemas.messages import Manifest, ModelUpdate, Receipt
from schemas.names import NAME_PATTERN
from schemas.task import TaskSpec
from schemas.topics import DEFAULT_PREFIX
from schemas.wire import (
    SHORT_MANIFEST,
    ManifestArray,
    ReceiptArray,
    ShortManifestArray,
    UpdateArray,
)
from scripts.contract.texts import explained, is_struct, leaves_of

EXPLAINED: Final[dict[type, type]] = {
    UpdateArray: ModelUpdate,
    ManifestArray: Manifest,
    ShortManifestArray: Manifest,
    ReceiptArray: Receipt,
    AskArray: Question,
    ReplyArray: Reply,
}
"""Where the fields of an array are explained."""

FORMS: Final[dict[type, tuple[type[msgspec.Struct], ...]]] = {
    ManifestArray: (ManifestArray, ShortManifestArray)
}
"""What travels in more than one form."""

FIRST: Final[dict[type, int]] = {ShortManifestArray: SHORT_MANIFEST}
"""What an array begins with, if not with the wire version."""

LEVELS: Final = {
    "prefix": ("First levels of every topic, 1 to 3.", DEFAULT_PREFIX),
    "task": (f"The task's name, {NAME_PATTERN}.", None),
    "device": (f"The device's name, {NAME_PATTERN}.", None),
    "shard": ("The first hex digit of SHA-256 over the device's name.", None),
    "blob": ("A blob's name, from the manifest.", None),
    "i": ("Decimal, from 0.", None),
}


def plain(name: str) -> str:
    """Of `UpdateArray` the name that people know."""
    return name.removesuffix("Array")


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
    forms = [
        {"$ref": f"#/components/schemas/{plain(each.__name__)}"}
        for each in FORMS.get(kind, (kind,))
    ]
    return {
        "title": plain(kind.__name__),
        "contentType": "application/msgpack" if packed else "application/json",
        "summary": channel.summary,
        "payload": forms[0] if len(forms) == 1 else {"oneOf": forms},
    }


def _schemas() -> dict[str, Any]:
    """Every Struct that travels, as JSON Schema draft 7, which AsyncAPI builds on."""
    said = [channel.payload for channel in CHANNELS if channel.payload is not None]
    kinds = [form for kind in said for form in FORMS.get(kind, (kind,))]
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
            pending += [inner for inner in leaves_of(field.type) if is_struct(inner)]


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
            inner["description"] = texts.get(field, f"always {FIRST.get(kind, WIRE)}")
        schema["items"][0]["const"] = FIRST.get(kind, WIRE)
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
    if (
        new.get("contentEncoding") == "base64"
    ):  # MessagePack's bin, 8 or 32 bytes: nothing is encoded
        size = new["minLength"] // 4 * 3 - 1
        new = {"type": "string", "format": "binary", "minLength": size, "maxLength": size}
    if "$ref" in new and len(new) > 1:
        rest = {key: inner for key, inner in new.items() if key not in {"$ref", "default"}}
        new = {"allOf": [{"$ref": new["$ref"]}], **rest}
    elif "$ref" in new:
        new = {"allOf": [new]}
    return new
