"""Read a fleet file: a TOML file with the tables of `fleet`."""

import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from fedmq.simulator.virtual.fleet import FleetFile, Progress, checked_fleet
from schemas.errors import ConfigError
from schemas.task import convert


def read_fleet(path: Path) -> FleetFile:
    """Read a fleet file; paths in it are seen from where it lies. Raises ConfigError.

    A fleet without a name has the file's. Modules of one's own may lie beside it: where the file
    names some, its folder is searched for modules from now on.
    """
    tables = {"name": path.stem, **_tables(path)}
    if isinstance(tables.get("task"), str):
        tables["task"] = _tables(path.parent / tables["task"])
    fleet = checked_fleet(convert(tables, FleetFile))
    kind, _, place = fleet.data.source.partition(":")
    own = [fleet.data.held_out, fleet.data.trainer, "" if kind == "turbofan" else place]
    if any(own):
        _search(path.parent)
    if kind == "turbofan" and place:
        data = msgspec.structs.replace(fleet.data, source=f"{kind}:{path.parent / place}")
        fleet = msgspec.structs.replace(fleet, data=data)
    if not fleet.availability.trace:
        return fleet
    trace = str(path.parent / fleet.availability.trace)
    there = msgspec.structs.replace(fleet.availability, trace=trace)
    return msgspec.structs.replace(fleet, availability=there)


def _search(folder: Path) -> None:
    name = str(folder.resolve())
    if name not in sys.path:
        sys.path.insert(0, name)


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(str(path), f"cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(str(path), f"is not TOML: {exc}") from exc


__all__ = ["FleetFile", "Progress", "checked_fleet", "read_fleet"]
