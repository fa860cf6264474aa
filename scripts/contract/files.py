"""The files of the contract, and whether they are what the types say."""

import argparse
import sys
from pathlib import Path
from typing import Final

import yaml

from scripts.contract.asyncapi import asyncapi
from scripts.contract.reference import reference

ROOT: Final = Path(__file__).parents[2]

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
    parser = argparse.ArgumentParser(
        prog="contract",
        description="Draw AsyncAPI and the reference of task.toml anew from the types.",
    )
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
