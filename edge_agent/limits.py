"""What this process may take of the machine: priority, threads, memory.

`nice` is for the whole process. Threads of linear algebra are bounded in the libraries that are
loaded by now (threadpoolctl), so the trainer is imported before.

Memory is bounded as RLIMIT_DATA, not as RLIMIT_AS. Both count what is allocated and 8 MB of stack a
thread; RLIMIT_AS also counts the libraries' code and the 64 MB of addresses that the C library sets
aside for every thread and hardly uses, so that a bound that numpy's threads can start under bounds
nothing. Who wants more gets a MemoryError, in the trainer, and the agent lives on. OpenBLAS would
end the process instead, so it is given its buffers before the bound is set. With more than one
thread it also asks for a few kilobytes in every product: `threads=1` closes that gap too.
"""

import os
import sys
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from schemas.errors import ConfigError

_ROOM_MB: Final = 32
"""A bound that leaves less than this is refused: not even the agent's threads would start."""

_WARM: Final = 512
"""A product of matrices of this size keeps every thread of OpenBLAS busy once."""


if sys.platform == "win32":

    def _bound_memory(_memory_mb: int) -> None:
        raise ConfigError("memory_mb", "Windows cannot bound it from inside; leave it out")

else:
    import resource

    def _bound_memory(memory_mb: int) -> None:
        square = np.ones((_WARM, _WARM), np.float32)
        np.matmul(square, square)
        before = resource.getrlimit(resource.RLIMIT_DATA)
        try:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, before[1]))
        except (ValueError, OverflowError, OSError) as exc:
            raise ConfigError("memory_mb", f"cannot be set ({exc})") from exc
        try:
            np.empty(_ROOM_MB << 20, np.uint8)
        except MemoryError as exc:
            resource.setrlimit(resource.RLIMIT_DATA, before)
            remedy = f"{memory_mb} MB leave less than {_ROOM_MB} MB to train in: give more"
            raise ConfigError("memory_mb", remedy) from exc


def apply_limits(*, nice: int, threads: int, memory_mb: int) -> None:
    """Bound this process; 0 leaves a limit alone. Raises ConfigError naming the field."""
    for name, value in (("nice", nice), ("threads", threads), ("memory_mb", memory_mb)):
        if value < 0:
            raise ConfigError(name, f"is {value}: must be at least 0")
    if nice:
        _lower_priority(nice)
    if threads:
        threadpool_limits(threads)
    if memory_mb:
        _bound_memory(memory_mb)


def _lower_priority(nice: int) -> None:
    if not hasattr(os, "nice"):
        raise ConfigError("nice", f"{sys.platform} knows no nice; leave it out")
    try:
        os.nice(nice)
    except OSError as exc:
        raise ConfigError("nice", f"cannot be set ({exc}); leave it out") from exc
