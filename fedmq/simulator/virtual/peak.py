"""The most memory that this process has ever held."""

import sys
from pathlib import Path


def peak_mib() -> float:
    """In MiB, of this program alone; 0 where the system does not tell.

    On Linux VmHWM: what getrusage tells there begins with what the parent process held.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        pass
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)
