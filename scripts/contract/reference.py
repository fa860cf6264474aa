"""Every field of task.toml as a page."""

from collections.abc import Iterator
from math import log
from typing import Any, Final

import msgspec

from schemas.task import InitOptions, TaskFile
from scripts.contract.texts import explained, is_struct, leaves_of

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
uplink = "222 B"

[strategy]
name = "fedbuff"
buffer_size = 10

[train]
epochs = 2
learning_rate = 0.05

[train.when]
charging = true

[codec]
name = "sq"

[gate]
metric = "accuracy"
margin = 0.02
canary = 0.1

[finish]
versions = 500
"""

_ABOVE: Final = "## Above the tables\n"

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
    tables = [field for field in msgspec.structs.fields(TaskFile) if field.name != "params"]
    parts.append("\n".join([_ABOVE, *_TABLE_HEAD, *_rows(TaskFile, but="params")]) + "\n")
    for table in tables:
        if is_struct(table.type):
            parts += _table(table.name, table.type)
    parts.append(_TENSORS + "\n".join(_rows(_tensor_spec())) + "\n")
    return "\n".join(parts)


def _struct_of(annotation: Any) -> type[msgspec.Struct]:
    found: type[msgspec.Struct] = next(each for each in leaves_of(annotation) if is_struct(each))
    return found


def _tensor_spec() -> type[msgspec.Struct]:
    (tensors,) = msgspec.structs.fields(_struct_of(TaskFile.__annotations__["params"]))
    return _struct_of(tensors.type)


def _table(name: str, kind: type[msgspec.Struct]) -> Iterator[str]:
    """One `[table]`, and the tables within it."""
    sentence, _ = explained(kind)
    sentence = sentence.partition(": ")[2]
    note = " Read when the task is made, and then told to devices." if kind is InitOptions else ""
    yield f"## `[{name}]`\n\n{sentence[0].upper()}{sentence[1:]}{note}\n"
    yield "\n".join([*_TABLE_HEAD, *_rows(kind)]) + "\n"
    for field in msgspec.structs.fields(kind):
        if is_struct(field.type):
            yield from _table(f"{name}.{field.name}", field.type)


def _rows(kind: type[msgspec.Struct], *, but: str = "") -> Iterator[str]:
    _, texts = explained(kind)
    _, found = msgspec.json.schema_components([kind])
    shapes = found[kind.__name__]["properties"]
    for field in msgspec.structs.fields(kind):
        if not is_struct(field.type) and field.name != but:
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
