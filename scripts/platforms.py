"""Check what docs/platforms.md says: that wheels exist for every platform that it names.

    python -m scripts.platforms          resolve for all of them, with Python 3.11 and 3.13
    python -m scripts.platforms --json   one JSON object on stdout

pip resolves the extras of pyproject.toml as it would on that platform, from wheels alone; nothing
is installed or run. Exit 1 when something is missing that the page promises. An index that has
wheels for this machine only (a local mirror) cannot be asked: that is said, and is no failure.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

ROOT: Final = Path(__file__).parents[1]
PYTHONS: Final = ("3.11", "3.13")


@dataclass(frozen=True, slots=True)
class Platform:
    """One platform as pip knows it.

    Attributes:
        name: as the page calls it.
        tags: of wheels that run there.
        extras: of fedmq that are promised there.
        without: what has no wheel there and comes from elsewhere; the page says from where.
    """

    name: str
    tags: Sequence[str]
    extras: Sequence[str]
    without: frozenset[str] = frozenset()


def _linux(machine: str) -> list[str]:
    old = {"x86_64": "2_5", "aarch64": "2_17"}[machine]
    return [f"manylinux_{glibc}_{machine}" for glibc in ("2_28", "2_27", "2_17", old)] + [
        f"manylinux2014_{machine}"
    ]


_ALL: Final = ("edge", "server", "demo")

PLATFORMS: Final = (
    Platform("Linux x86-64", _linux("x86_64"), _ALL),
    Platform("Linux arm64", _linux("aarch64"), _ALL),
    Platform(
        "Linux 32-bit ARM",
        ["linux_armv7l", "manylinux2014_armv7l", "manylinux_2_17_armv7l", "manylinux_2_31_armv7l"],
        ("edge",),
        frozenset({"numpy", "msgpack", "msgspec"}),
    ),
    Platform("macOS arm64", [f"macosx_{n}_0_arm64" for n in (11, 12, 13, 14)], _ALL),
    Platform("macOS x86-64", ["macosx_10_9_x86_64", "macosx_11_0_x86_64"], _ALL),
    Platform("Windows x86-64", ["win_amd64"], ("edge",)),
)


def requirements(extras: Iterable[str]) -> list[str]:
    """What pyproject.toml asks for with these extras, fedmq's own extras resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = list(project["dependencies"])
    pending = list(extras)
    while pending:
        for requirement in project["optional-dependencies"][pending.pop()]:
            if requirement.startswith("fedmq["):
                pending += requirement.removeprefix("fedmq[").rstrip("]").split(",")
            else:
                found.append(requirement)
    return sorted(set(found))


def name_of(requirement: str) -> str:
    """Of `redis[hiredis]>=5.2` the name."""
    return re.split(r"[\[<>=~!; ]", requirement, maxsplit=1)[0]


Resolve: TypeAlias = Callable[[Sequence[str], Platform, str], tuple[list[str], str]]
"""(requirements, platform, Python) -> the wheels that would be installed, and why none would."""


def resolved(asked: Sequence[str], where: Platform, python: str) -> tuple[list[str], str]:
    """Wheels that pip would install there, and why it could not."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--ignore-installed", "--only-binary=:all:"]
        command += ["--report", str(report), "--target", folder, "--python-version", python]
        command += ["--implementation", "cp", "--abi", f"cp{python.replace('.', '')}"]
        command += ["--abi", "abi3", "--abi", "none"]
        for tag in (*where.tags, "any"):
            command += ["--platform", tag]
        done = subprocess.run([*command, *asked], capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return [], (errors or [done.stderr.strip()])[0].removeprefix("ERROR: ")
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return [item["download_info"]["url"].rpartition("/")[2] for item in found], ""


def has_foreign_wheels(resolve: Resolve) -> bool:
    """Whether the index can be asked at all: the smallest wheel, for two other machines."""
    return all(resolve(["msgpack>=1.1"], where, PYTHONS[0])[0] for where in PLATFORMS[-2:])


def check(where: Platform, python: str, resolve: Resolve) -> dict[str, object]:
    """Resolve everything that is promised there, less what comes from elsewhere."""
    asked = requirements(where.extras)
    rest = [each for each in asked if name_of(each) not in where.without]
    wheels, why = resolve(rest, where, python)
    return {
        "platform": where.name,
        "python": python,
        "extras": list(where.extras),
        "wheels": len(wheels),
        "from_elsewhere": sorted(where.without),
        "missing": why,
    }


def main(arguments: list[str] | None = None, resolve: Resolve = resolved) -> None:
    """Check all of them."""
    parser = argparse.ArgumentParser(prog="platforms", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    as_json = parser.parse_args(arguments).json
    if not has_foreign_wheels(resolve):
        print("not checked: this index has wheels for this machine only", file=sys.stderr)
        if as_json:
            print(json.dumps({"checked": False, "platforms": []}))
        return
    found = []
    for where in PLATFORMS:
        for python in PYTHONS:
            row = check(where, python, resolve)
            told = row["missing"] or f"{row['wheels']} wheels"
            beside = f", without {', '.join(sorted(where.without))}" if where.without else ""
            print(f"{where.name:18} {python}  {told}{beside}", file=sys.stderr)
            found.append(row)
    if as_json:
        machine = f"{platform.system()} {platform.machine()}"
        print(json.dumps({"checked": True, "asked_from": machine, "platforms": found}))
    if any(row["missing"] for row in found):
        print("docs/platforms.md promises what cannot be installed", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
