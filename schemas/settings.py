"""Settings of a process: one frozen value from a TOML table, FEDMQ_* variables and flags.

Pure: the environment and the file's text come in as arguments. Later sources win:
defaults < file < environment < flags.
"""

import tomllib
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

import msgspec

from schemas.errors import ConfigError
from schemas.task import Option, convert

ENV_PREFIX: Final = "FEDMQ_"
_Settings = TypeVar("_Settings", bound=msgspec.Struct)


def load_settings(
    kind: type[_Settings],
    *,
    table: str,
    file_text: str = "",
    environ: Mapping[str, str],
    flags: Mapping[str, object],
) -> _Settings:
    """Build one process' settings.

    Args:
        kind: a Struct whose fields are the settings.
        table: the TOML table that holds them, e.g. `bridge`.
        file_text: the configuration file's text, empty for none.
        environ: the environment; FEDMQ_<FIELD> sets a field.
        flags: what the command line said; None means not said.

    Raises:
        ConfigError: naming the field and the remedy.
    """
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    values: dict[str, object] = dict(_table(file_text, table))
    for name in values:
        if name not in names:
            raise ConfigError(f"{table}.{name}", f"unknown; choose from {', '.join(names)}")
    for name in names:
        text = environ.get(ENV_PREFIX + name.upper())
        if text is not None:
            values[name] = text
    values |= {name: value for name, value in flags.items() if value is not None}
    return _lax(values, kind)


def read_option(text: str) -> tuple[str, Option]:
    """Read `key=value`; a value is a number, a truth value, or else text. Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError("option", f"{text!r} must be KEY=VALUE")
    readers: tuple[Callable[[str], Option], ...] = (int, float)
    for read in readers:
        try:
            return key, read(value)
        except ValueError:
            continue
    return key, {"true": True, "false": False}.get(value.lower(), value)


def _table(file_text: str, table: str) -> Mapping[str, object]:
    try:
        tables = tomllib.loads(file_text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError("the configuration file", f"is not TOML: {exc}") from exc
    found = tables.get(table, {})
    if not isinstance(found, dict):
        raise ConfigError(table, f"must be a table: write [{table}] above its settings")
    return found


def _lax(values: Mapping[str, object], kind: type[_Settings]) -> _Settings:
    """Convert, letting text stand for numbers and truth values as an environment must."""
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError:
        texts = {k: v for k, v in values.items() if isinstance(v, str)}
        for name, text in texts.items():
            try:
                msgspec.convert({name: text}, kind, strict=False)
            except msgspec.ValidationError as exc:
                if f"$.{name}`" in str(exc):
                    what = str(exc).partition(" - at")[0]
                    what = what[0].lower() + what[1:]
                    raise ConfigError(name, f"{text!r} does not fit: {what}") from exc
        return convert(values, kind, strict=False)
