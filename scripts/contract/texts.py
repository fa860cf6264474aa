"""What the types say of themselves: their docstrings, and what they are made of."""

import re
from collections.abc import Iterator
from inspect import cleandoc
from typing import Any, Final, get_args

import msgspec

_FIELD: Final = re.compile(r"^    (\w+): (.*)$")


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


def leaves_of(annotation: Any) -> Iterator[Any]:
    """The classes within an annotation: `tuple[TensorSpec, ...]` has one."""
    inner = [arg for arg in get_args(annotation) if arg is not Ellipsis]
    if not inner:
        yield annotation
    for each in inner:
        yield from leaves_of(each)


def is_struct(kind: Any) -> bool:
    """Whether it is a class of messages or settings."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
