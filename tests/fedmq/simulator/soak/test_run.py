"""What watches a soak looks at living devices, and only while nothing is struck."""

import asyncio
from pathlib import Path

import pytest
import servers

from fedmq.simulator.soak import run
from fedmq.simulator.soak.fleet import DeviceHere, Fleet, Node
from fedmq.simulator.soak.machine import Machine
from fedmq.simulator.soak.plan import Plan
from fedmq.simulator.soak.report import Progress
from fedmq.simulator.soak.run import Sight


class Still(Machine):
    """A machine without a process."""

    alive = True

    @property
    def runs(self) -> bool:
        return self.alive

    def start(self) -> None:
        self.deaths += 1
        self.alive = True


class Link:
    def __init__(self, here: Fleet) -> None:
        self.here = here
        self.led: list[tuple[int, int]] = []

    def retarget(self, port: int) -> None:
        self.led.append((self.here.primary, port))


@pytest.fixture
def here(tmp_path: Path) -> Fleet:
    fleet = Fleet(Plan(seed=1, seconds=1.0, devices=2), tmp_path)
    for name in ("redis-a", "redis-b"):
        machine = Still(name, tuple, tmp_path)
        fleet.nodes.append(Node(machine, tmp_path, servers.free_port(), tmp_path / "clock"))
    fleet.broker = Still("broker", tuple, tmp_path)
    for number in range(2):
        name = f"device-{number:02}"
        machine = Still(name, tuple, tmp_path)
        fleet.devices.append(DeviceHere(name, machine, None, tmp_path / name))  # type: ignore[arg-type]
    return fleet


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose spools are opened."""
    opened: list[str] = []

    def open_on(_spool: Path, device: str) -> set[tuple[str, int, int]]:
        opened.append(device)
        return {(device, 1, 1)}

    monkeypatch.setattr(run, "open_on", open_on)
    monkeypatch.setattr(run, "LOOK_S", 0.0)
    return opened


async def look(here: Fleet, sight: Sight, times: int) -> None:
    """Look so many times."""
    seen = asyncio.Event()
    count = 0

    def watch(_: Sight) -> None:
        nonlocal count
        count += 1
        if count == times:
            seen.set()

    looking = asyncio.create_task(run._look(here, sight, watch))
    async with asyncio.timeout(20):
        await seen.wait()
    looking.cancel()
    await asyncio.wait([looking])


async def test_spools_are_looked_at_only_while_nothing_is_struck(
    here: Fleet, looked_at: list[str]
) -> None:
    sight = Sight(Progress(here.plan), fault="kill device 0")
    await look(here, sight, 3)
    assert (looked_at, sight.open) == ([], 0)
    sight.fault = ""
    await look(here, sight, 1)
    assert set(looked_at) == {"device-00", "device-01"}
    assert sight.open == 2


async def test_the_card_of_a_dead_device_is_not_opened(here: Fleet, looked_at: list[str]) -> None:
    here.devices[0].machine.alive = False  # type: ignore[attr-defined]
    assert run._open(here) == 1
    assert looked_at == ["device-01"]


async def test_deaths_are_added_to_those_before_a_resume(here: Fleet, looked_at: list[str]) -> None:
    sight = Sight(Progress(here.plan, deaths={"device-01": 2}))
    here.devices[1].machine._wanted = True
    here.devices[1].machine.alive = False  # type: ignore[attr-defined]
    await look(here, sight, 2)
    assert sight.progress.deaths == {"device-01": 3}
    assert looked_at


def test_a_failover_is_noted_before_anybody_is_led_to_the_new_primary(here: Fleet) -> None:
    link = Link(here)
    here.redis_links = [link]  # type: ignore[list-item]
    noted: list[tuple[int, int]] = []
    here.on_primary = lambda primary: noted.append((primary, len(link.led)))
    here.take_over()
    here.take_over()
    assert noted == [(1, 0), (0, 1)]
    assert link.led == [(1, here.nodes[1].port), (0, here.nodes[0].port)]
