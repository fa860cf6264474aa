"""What this process may take of the machine: priority, threads, memory.

`nice` is for the whole process. Threads of linear algebra are bounded in the libraries that numpy
has loaded (threadpoolctl). Memory is bounded as RLIMIT_DATA: what is allocated counts, what is
only mapped (libraries, reserved stacks) does not, so that numpy's threads can start; who wants more
gets a MemoryError, in the trainer, and the agent lives on.
"""

import os
import sys

from threadpoolctl import threadpool_limits

from schemas.errors import ConfigError

if sys.platform != "win32":
    import resource


def apply_limits(*, nice: int, threads: int, memory_mb: int) -> None:
    """Bound this process; 0 leaves a limit alone. Raises ConfigError naming the field."""
    if nice:
        _lower_priority(nice)
    if threads:
        threadpool_limits(threads)
    if memory_mb:
        _bound_memory(memory_mb << 20)


def _lower_priority(nice: int) -> None:
    if not hasattr(os, "nice"):
        raise ConfigError("nice", f"{sys.platform} knows no nice; leave it out")
    os.nice(nice)


def _bound_memory(size: int) -> None:
    if sys.platform == "win32":
        raise ConfigError("memory_mb", "Windows cannot bound it from inside; leave it out")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (size, hard))
    except (ValueError, OSError) as exc:
        raise ConfigError("memory_mb", f"cannot be set ({exc})") from exc
