"""One log, one model: the same bits on another CPU, without its features, with another numpy."""

import fcntl
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("fold_digest.py")
OLD_NUMPY = "1.26.4" if sys.version_info < (3, 13) else "2.1.0"  # the oldest with a wheel
OLD_VENV = ROOT / ".cache" / f"numpy-{OLD_NUMPY.rpartition('.')[0]}"
NO_FMA = "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2,-FMA_Usable,-FMA4_Usable,-AVX2_Usable"
ENABLED = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]


def digest(python: str = sys.executable, **env: str) -> tuple[str, str]:
    """The numpy that was used, and what the script printed."""
    inherited = {
        k: v for k, v in os.environ.items() if not k.startswith(("NPY_", "OPENBLAS_", "GLIBC_"))
    }
    done = subprocess.run(
        [python, "-W", "error", str(SCRIPT)],
        env=inherited | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, line = done.stdout.split()
    return version, line


@pytest.fixture(scope="session")
def here() -> str:
    return digest()[1]


@pytest.fixture(scope="session")
def old_python() -> str:
    """A second venv, made once and kept; one worker makes it, the others wait."""
    python = OLD_VENV / "bin" / "python"
    OLD_VENV.parent.mkdir(exist_ok=True)
    (OLD_VENV.parent / ".gitignore").write_text("*\n")
    with OLD_VENV.with_name(f"{OLD_VENV.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (OLD_VENV / "complete").exists():
            return str(python)
        shutil.rmtree(OLD_VENV, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(OLD_VENV)],
            [
                str(python),
                "-m",
                "pip",
                "-q",
                "install",
                "--only-binary=:all:",
                f"numpy=={OLD_NUMPY}",
                "msgpack",
                "msgspec",
            ],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                why = f"numpy {OLD_NUMPY} could not be installed: {done.stderr.strip()[-500:]}"
                pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
        (OLD_VENV / "complete").touch()
    return str(python)


def test_it_is_the_same_every_time(here: str) -> None:
    assert digest(PYTHONHASHSEED="1")[1] == here


@pytest.mark.parametrize("core", ["Haswell", "Nehalem"])
def test_it_is_the_same_with_the_blas_of_another_cpu(here: str, core: str) -> None:
    assert digest(OPENBLAS_CORETYPE=core)[1] == here


@pytest.mark.skipif(not ENABLED, reason="numpy dispatches nothing on this CPU")
def test_it_is_the_same_without_the_features_of_this_cpu(here: str) -> None:
    assert digest(NPY_DISABLE_CPU_FEATURES=" ".join(ENABLED))[1] == here


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_it_is_the_same_with_the_c_library_of_a_cpu_without_fused_multiply_add(here: str) -> None:
    """Its `pow` differs in the last bit of some float64 weights; float32 rounds that away."""
    assert digest(GLIBC_TUNABLES=NO_FMA)[1] == here


def test_it_is_the_same_with_an_older_numpy(here: str, old_python: str) -> None:
    version, line = digest(old_python)
    assert version == OLD_NUMPY
    assert line == here
