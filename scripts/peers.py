"""Install what some tests compare with: torch, and the oldest onnxruntime that loads our graphs.

torch goes into this environment (its gradients are the second opinion on ours), the old onnxruntime
with its numpy into one of its own below .cache/. Tests that need either say so when it is absent.
"""

import subprocess
import sys
from typing import Final

from benchmarks.peers.environment import ROOT, environment
from benchmarks.report import progress

OLDEST: Final = ("onnxruntime==1.18.1", "numpy==1.26.4", "msgspec", "msgpack")
OLDEST_NAME: Final = "onnxruntime-1.18.1"
NEWEST_PYTHON: Final = (3, 12)
"""The newest that this onnxruntime has wheels for."""


def main() -> None:
    """Install both."""
    torch = str(ROOT / "benchmarks" / "peers" / "requirements-torch.txt")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    progress("installing torch for the tests (benchmarks/peers/requirements-torch.txt)")
    subprocess.run([*pip, "-r", torch], check=True)
    if sys.version_info[:2] > NEWEST_PYTHON:
        progress(f"{OLDEST_NAME} has no wheel for this Python: its test will be skipped")
        return
    environment(OLDEST_NAME, *OLDEST)


if __name__ == "__main__":
    main()
