"""Machines with small real children, which tell what they do in their log files."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from fedmq.simulator.soak.machine import Machine

PATIENCE_S = 30.0
SLEEPS = "import time\nprint('up', flush=True)\ntime.sleep(600)"
DEAF = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEPS}"
POLITE = (
    "import signal, sys\n"
    f"signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), sys.exit()))\n{SLEEPS}"
)
COUNTS = (
    "import itertools, time\n"
    "for n in itertools.count():\n    print('up', n, flush=True)\n    time.sleep(0.02)"
)
WRITES = """
import errno, pathlib, sys, time
refused = pathlib.Path(sys.argv[2])
with open(sys.argv[1], "ab", buffering=0) as file:
    while True:
        try:
            file.write(bytes(100))
        except OSError as exc:
            assert exc.errno == errno.EFBIG
            refused.touch()  # an empty file has no size to limit
        time.sleep(0.02)
"""


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Machine]]:
    """Make and start a machine that runs some Python; stop it at the end."""
    made: list[Machine] = []

    def begin(code: str, *arguments: str, **more: object) -> Machine:
        command = [sys.executable, "-c", code, *arguments]
        made.append(Machine(f"m{len(made)}", lambda: command, tmp_path, **more))  # type: ignore[arg-type]
        made[-1].start()
        return made[-1]

    yield begin
    for machine in made:
        machine.limit_files(None)
        await machine.kill()


def said(machine: Machine) -> str:
    return (machine.folder / f"{machine.name}.log").read_text()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.02)


async def up(machine: Machine) -> None:
    await until(lambda: "up" in said(machine))


def test_what_was_never_started_has_no_number_and_takes_no_signal(tmp_path: Path) -> None:
    machine = Machine("m", lambda: (), tmp_path)
    assert not machine.runs
    machine.signal(signal.SIGKILL)
    assert not machine.revive()
    with pytest.raises(RuntimeError, match="never started"):
        assert machine.pid


async def test_a_start_starts_one_and_a_second_start_none(start) -> None:
    machine = start(SLEEPS)
    pid = machine.pid
    machine.start()
    assert machine.pid == pid
    assert machine.runs


async def test_a_kill_is_sudden_and_a_start_after_it_begins_anew(start) -> None:
    machine = start(POLITE)
    await up(machine)
    before = machine.pid
    await machine.kill()
    assert not machine.runs
    assert "bye" not in said(machine)
    machine.start()
    assert machine.pid != before
    await until(lambda: said(machine).count("up") == 2)


async def test_a_stop_lets_it_say_goodbye(start) -> None:
    machine = start(POLITE)
    await up(machine)
    await machine.stop()
    assert not machine.runs
    assert "bye" in said(machine)


async def test_who_is_deaf_to_sigterm_is_killed(start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmq.simulator.soak.machine.STOP_S", 0.3)
    machine = start(DEAF)
    await up(machine)
    await machine.stop()
    assert not machine.runs


async def test_a_frozen_one_does_nothing_until_it_thaws(start) -> None:
    machine = start(COUNTS)
    await up(machine)
    machine.signal(signal.SIGSTOP)
    await until(lambda: psutil.Process(machine.pid).status() == psutil.STATUS_STOPPED)
    frozen = said(machine)
    assert machine.runs, "frozen is not dead"
    machine.signal(signal.SIGCONT)
    await until(lambda: len(said(machine)) > len(frozen))


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_a_frozen_one_ends_when_it_must(start, end: str) -> None:
    machine = start(POLITE)
    await up(machine)
    machine.signal(signal.SIGSTOP)
    await until(lambda: psutil.Process(machine.pid).status() == psutil.STATUS_STOPPED)
    await getattr(machine, end)()
    assert not machine.runs
    assert ("bye" in said(machine)) == (end == "stop"), "a stop thaws it first"


async def test_who_ends_by_himself_is_revived_and_counted(start) -> None:
    machine = start("print('up', flush=True)")
    await until(lambda: not machine.runs)
    assert machine.revive()
    assert machine.deaths == 1
    await until(lambda: said(machine).count("up") == 2)
    await until(lambda: not machine.runs)
    assert machine.revive()
    assert machine.deaths == 2


@pytest.mark.parametrize("then", ["start", "kill", "stop"])
async def test_a_death_is_counted_whatever_comes_next(start, then: str) -> None:
    machine = start("")
    await until(lambda: not machine.runs)
    done = getattr(machine, then)()
    if done is not None:
        await done
    assert machine.deaths == 1
    await machine.kill()
    assert machine.deaths == 1


async def test_a_death_that_was_struck_is_pardoned(start) -> None:
    machine = start("")
    machine.pardon()
    await until(lambda: not machine.runs)
    machine.pardon()
    machine.start()
    assert machine.deaths == 0
    await until(lambda: not machine.runs)
    machine.start()
    assert machine.deaths == 1, "the next one counts again"


async def test_whoever_keeps_the_list_is_told_of_each_start(start) -> None:
    told: list[tuple[str, int]] = []
    machine = start(SLEEPS, started=lambda name, pid: told.append((name, pid)))
    first = machine.pid
    machine.start()
    await machine.kill()
    machine.start()
    assert told == [("m0", first), ("m0", machine.pid)]


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("setpriv"), reason="PR_SET_PDEATHSIG is Linux'"
)
async def test_it_ends_with_who_started_it_though_that_one_was_killed(tmp_path: Path) -> None:
    parent = (
        "import sys, time\nfrom pathlib import Path\n"
        "from fedmq.simulator.soak.machine import Machine\n"
        f"m = Machine('m', lambda: [sys.executable, '-c', {SLEEPS!r}], Path(sys.argv[1]))\n"
        "m.start()\nprint(m.pid, flush=True)\ntime.sleep(600)"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    child = psutil.Process(int(await process.stdout.readline()))
    await until(lambda: (tmp_path / "m.log").read_text())
    process.kill()
    await process.wait()
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("end", ["kill", "stop"])
async def test_who_was_made_to_end_stays_dead(start, end: str) -> None:
    machine = start(SLEEPS)
    assert not machine.revive(), "it runs"
    await getattr(machine, end)()
    assert not machine.revive()
    assert not machine.runs
    assert machine.deaths == 0


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE of another process")
async def test_a_limit_stops_its_files_and_lifting_it_lets_them_grow(start, tmp_path: Path) -> None:
    file, refused = tmp_path / "grows", tmp_path / "refused"
    machine = start(WRITES, str(file), str(refused))
    await until(lambda: file.exists() and file.stat().st_size > 300)
    assert not refused.exists()
    assert machine.limit_files(1)
    await until(refused.exists)
    full = file.stat().st_size
    refused.unlink()
    await until(refused.exists)
    assert file.stat().st_size == full
    assert machine.runs
    assert machine.limit_files(None)
    await until(lambda: file.stat().st_size > full)


async def test_what_does_not_run_cannot_be_limited(start) -> None:
    machine = start("")
    await until(lambda: not machine.runs)
    assert not machine.limit_files(1)


async def test_it_is_given_its_environment_but_none_of_ours(
    start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMQ_REDIS_URL", "redis://elsewhere")
    monkeypatch.setenv("KEPT", "kept")
    code = "import os\nfor n in ('FEDMQ_REDIS_URL', 'KEPT', 'MORE'): print(n, os.environ.get(n))"
    machine = start(code, environ={"MORE": "more"})
    await until(lambda: "MORE" in said(machine))
    assert said(machine).split() == ["FEDMQ_REDIS_URL", "None", "KEPT", "kept", "MORE", "more"]


async def test_ctrl_c_at_the_terminal_does_not_reach_it(start) -> None:
    machine = start(SLEEPS)
    assert os.getpgid(machine.pid) != os.getpgrp()
