"""The user's own code, by name: `module:name`."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.errors import ConfigError
from schemas.task import Option


def imported(field: str, path: str) -> Any:
    """Import `module:name`, also from the folder one stands in. Raises ConfigError."""
    module_name, colon, name = path.partition(":")
    if not colon:
        raise ConfigError(field, f"{path!r} must be module:name")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(field, f"{path!r} cannot be imported: {exc}") from exc


def made(field: str, path: str, options: Mapping[str, Option]) -> Any:
    """Import `module:Class` and make one. Raises ConfigError."""
    kind = imported(field, path)
    try:
        return kind(**options)
    except (TypeError, ValueError, OSError) as exc:
        name = path.partition(":")[2]
        raise ConfigError("option", f"{name} refuses its options: {exc}") from exc
