"""A throw-away environment for a peer: made once, below .cache/peers; no dependency of ours."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.report import progress

ROOT: Final = Path(__file__).resolve().parents[2]


def environment(name: str, *packages: str) -> Path:
    """The interpreter of an environment that holds these packages."""
    folder = ROOT / ".cache" / "peers" / name
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.exists():
        progress(f"installing {', '.join(packages)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *packages], check=True, stderr=subprocess.DEVNULL)
        ready.touch()
    return python


def megabytes(python: Path) -> float:
    """What an environment takes on the disk."""
    folder = python.parents[1]
    files = (f for f in folder.rglob("*") if f.is_file() and not f.is_symlink())
    return sum(file.stat().st_size for file in files) / 1e6
