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


FULL = """
import numpy as np
from edge_agent.limits import apply_limits
apply_limits(nice=0, threads=1, memory_mb=400)
a = np.ones((400, 400), dtype=np.float32)
out = np.empty_like(a)
kept = []
try:
    while True:
        kept.append(np.empty(1 << 20, dtype=np.uint8))
except MemoryError:
    np.matmul(a, a, out=out)
    print("lives", out[0, 0])
"""

REFUSED = """
import os
import resource
from edge_agent.limits import apply_limits
from schemas.errors import ConfigError
before = os.nice(0), resource.getrlimit(resource.RLIMIT_DATA)
try:
    apply_limits(**{{"nice": 0, "threads": 0, "memory_mb": 0}} | {given})
except ConfigError as exc:
    print(exc.field, before == (os.nice(0), resource.getrlimit(resource.RLIMIT_DATA)))
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=servers.ROOT
    )
    return done.stdout.strip()


def shown(nice: int = 0, threads: int = 0, memory_mb: int = 0) -> list[str]:
    code = SHOW.format(nice=nice, threads=threads, memory_mb=memory_mb)
    return run(code).split(maxsplit=2)


def test_the_priority_is_lowered():
    assert shown(nice=5)[0] == "5"


def test_linear_algebra_gets_so_many_threads():
    assert shown(threads=1)[1] == "1"


@pytest.mark.parametrize(("memory_mb", "told"), [(0, "had it"), (512, "MemoryError")])
def test_who_wants_more_memory_gets_an_error_and_lives_on(memory_mb, told):
    assert shown(memory_mb=memory_mb)[2].strip() == told


def test_the_first_product_when_memory_is_full_does_not_end_the_process():
    assert run(FULL) == "lives 400.0"


@pytest.mark.parametrize(
    ("field", "value"),
    [("nice", -5), ("threads", -1), ("memory_mb", -1), ("memory_mb", 5), ("memory_mb", 1 << 50)],
)
def test_a_limit_that_cannot_hold_is_refused_by_name_and_changes_nothing(field, value):
    assert run(REFUSED.format(given={field: value})) == f"{field} True"
