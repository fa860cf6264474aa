"""Limits of a process, in a process of its own: they cannot be taken back."""

import subprocess
import sys

import pytest
import servers

SHOW = """
import os
import numpy as np
from threadpoolctl import threadpool_info
from edge_agent.limits import apply_limits
before = os.nice(0)
apply_limits(nice={nice}, threads={threads}, memory_mb={memory_mb})
np.ones((300, 300)) @ np.ones((300, 300))
try:
    kept = np.empty(1 << 30, dtype=np.uint8)  # 1 GiB
    told = "had it"
except MemoryError:
    told = "MemoryError"
print(os.nice(0) - before, max(info["num_threads"] for info in threadpool_info()), told)
"""


def shown(nice: int = 0, threads: int = 0, memory_mb: int = 0) -> list[str]:
    code = SHOW.format(nice=nice, threads=threads, memory_mb=memory_mb)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=servers.ROOT
    )
    return done.stdout.split(maxsplit=2)


def test_the_priority_is_lowered():
    assert shown(nice=5)[0] == "5"


def test_linear_algebra_gets_so_many_threads():
    assert shown(threads=1)[1] == "1"


@pytest.mark.parametrize(("memory_mb", "told"), [(0, "had it"), (512, "MemoryError")])
def test_who_wants_more_memory_gets_an_error_and_lives_on(memory_mb, told):
    assert shown(memory_mb=memory_mb)[2].strip() == told
