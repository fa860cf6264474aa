"""How each fault of the schedule is inflicted and taken back. Read it beside `schedule.KINDS`."""

import asyncio
import random
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from redis.exceptions import RedisError

from fedmq.servers import listening
from fedmq.simulator.proxy import Proxy, Way
from fedmq.simulator.soak.cards import copy_card, put_card, tear
from fedmq.simulator.soak.fleet import DeviceHere, Fleet, Node
from fedmq.simulator.soak.machine import Machine
from fedmq.simulator.soak.poison import flood, send_poison
from fedmq.simulator.soak.schedule import NEEDS_FAKETIME, NEEDS_LINUX, Fault
from redis_session.connection import connect
from schemas.errors import FedmqError

Strike: TypeAlias = Callable[[Fleet, Fault, random.Random], Awaitable[str]]
"""Inflicts one fault, waits as long as it lasts, takes it back; returns why not, or nothing."""


async def strike(fleet: Fleet, fault: Fault) -> str:
    """Inflict a fault and take it back. Returns why it could not be, or an empty text."""
    rng = random.Random(fault.dice)  # noqa: S311 - told by the schedule
    try:
        return await STRIKES[fault.kind](fleet, fault, rng)
    except RedisError:  # of the fault before: what was begun of this one has been taken back
        return "Redis does not answer just now"


# -- processes ---------------------------------------------------------------------------------


def _machine(fleet: Fleet, fault: Fault) -> Machine:
    match fault.place:
        case "device":
            return fleet.devices[fault.which % len(fleet.devices)].machine
        case "bridge":
            return fleet.bridges[fault.which]
        case "aggregator":
            return fleet.aggregators[fault.which]
        case "broker":
            return fleet.broker
        case "redis":
            return fleet.redis.machine
        case "replica":
            return fleet.replica.machine
    raise ValueError(fault.place)


async def _up_again(fleet: Fleet, machine: Machine) -> None:
    """Start it, and wait until a server answers."""
    machine.start()
    if machine is fleet.broker:
        await listening(fleet.broker_port, "the broker")
    for node in fleet.nodes:
        if machine is node.machine:
            await fleet.ready(node)


async def _kill(fleet: Fleet, fault: Fault, _rng: random.Random) -> str:
    machine = _machine(fleet, fault)
    await machine.kill()
    await asyncio.sleep(fault.lasts_s)
    await _up_again(fleet, machine)
    return ""


async def _freeze(fleet: Fleet, fault: Fault, _rng: random.Random) -> str:
    machine = _machine(fleet, fault)
    machine.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        machine.signal(signal.SIGCONT)
    return ""


async def _restart(fleet: Fleet, fault: Fault, _rng: random.Random) -> str:
    machine = _machine(fleet, fault)
    await machine.stop()
    await asyncio.sleep(fault.lasts_s)
    await _up_again(fleet, machine)
    return ""


async def _wipe(fleet: Fleet, fault: Fault, _rng: random.Random) -> str:
    await fleet.broker.kill()
    for file in (fleet.folder / "broker").glob("*.db*"):
        file.unlink()
    await asyncio.sleep(fault.lasts_s)
    await _up_again(fleet, fleet.broker)
    return ""


async def _failover(fleet: Fleet, fault: Fault, _rng: random.Random) -> str:
    """The replica takes over, if it follows: no Sentinel would take one that does not."""
    old, new = fleet.redis, fleet.replica
    if not await _follows(new):
        return "the replica does not follow just now"
    await old.machine.kill()
    await asyncio.sleep(fault.lasts_s)
    try:
        async with connect(new.url) as redis:
            await redis.replicaof("NO", "ONE")
        fleet.take_over()
    finally:  # without a new primary the old one goes on
        await _up_again(fleet, old.machine)
    return ""


async def _follows(node: Node) -> bool:
    with suppress(RedisError, OSError):
        async with connect(node.url) as redis:
            found: Any = await redis.info("replication")
            linked = found.get("master_link_status") == "up"
            return linked and not found.get("master_sync_in_progress")
    return False


# -- links -------------------------------------------------------------------------------------


def _link(fleet: Fleet, fault: Fault, rng: random.Random) -> Proxy:
    match fault.place:
        case "device":
            return fleet.devices[fault.which % len(fleet.devices)].link
        case "bridge":
            return rng.choice([fleet.bridge_links[fault.which], fleet.redis_links[fault.which]])
        case "aggregator":
            return fleet.redis_links[2 + fault.which]
    raise ValueError(fault.place)


async def _partition(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    return await _parted(_link(fleet, fault, rng), "both", fault)


async def _one_way(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    return await _parted(_link(fleet, fault, rng), rng.choice(("up", "down")), fault)


async def _parted(link: Proxy, way: Way, fault: Fault) -> str:
    link.partition(way)
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        link.mend()
    return ""


async def _reset(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    _link(fleet, fault, rng).reset()
    await asyncio.sleep(fault.lasts_s)
    return ""


async def _half_open(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    link = _link(fleet, fault, rng)
    link.half_open(rng.choice(("broker", "device")))
    await asyncio.sleep(fault.lasts_s)
    link.reset()
    return ""


async def _corrupt(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    link = _link(fleet, fault, rng)
    link.corrupt(rng.randint(1, 4), rng, reset_after_s=fault.lasts_s)
    await asyncio.sleep(fault.lasts_s)
    link.corrupt(0, rng)
    return ""


async def _slow(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    link = _link(fleet, fault, rng)
    link.throttle(2000.0)
    try:
        await asyncio.sleep(fault.lasts_s)
    finally:
        link.throttle(None)
    return ""


# -- bytes, memory, disk, time -----------------------------------------------------------------


async def _poison(fleet: Fleet, _fault: Fault, rng: random.Random) -> str:
    return await send_poison(fleet, rng)


async def _flood(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    """The bridge sleeps while more comes for it than its broker keeps."""
    machine = fleet.bridges[fault.which]
    machine.signal(signal.SIGSTOP)
    try:
        told = await flood(fleet, fault.which, rng)
        await asyncio.sleep(fault.lasts_s)
    finally:
        machine.signal(signal.SIGCONT)
    return told


async def _redis_full(fleet: Fleet, fault: Fault, _rng: random.Random) -> str:
    node = fleet.redis
    try:
        async with connect(node.url) as redis:
            await redis.config_set("maxmemory", "1mb")
        await asyncio.sleep(fault.lasts_s)
    finally:
        async with connect(node.url) as redis:
            await redis.config_set("maxmemory", "0")
    return ""


async def _disk_full(fleet: Fleet, fault: Fault, _rng: random.Random) -> str:
    """No file of the process may grow; a Redis that cannot write its AOF ends, as documented."""
    machine = _machine(fleet, fault)
    size = 1 if fault.place == "device" else _largest(fleet.redis)
    if not machine.limit_files(size):
        return NEEDS_LINUX
    await asyncio.sleep(fault.lasts_s)
    machine.limit_files(None)
    if not machine.runs:
        if fault.place == "redis":
            machine.pardon()
        await _up_again(fleet, machine)
    return ""


def _largest(node: Node) -> int:
    return max((f.stat().st_size for f in node.folder.rglob("*.aof")), default=0)


async def _clock(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    node = fleet.redis
    if not node.machine.environ:
        return NEEDS_FAKETIME
    seconds = rng.choice((-3600, -60, -5, 5, 60, 3600))
    node.clock.write_text(f"{seconds:+d}\n")
    try:
        await asyncio.sleep(1.2 + fault.lasts_s)  # libfaketime looks once a second
    finally:
        node.clock.write_text("+0\n")
    return ""


# -- cards -------------------------------------------------------------------------------------


def _device(fleet: Fleet, fault: Fault) -> DeviceHere:
    return fleet.devices[fault.which % len(fleet.devices)]


async def _old_card(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    """Put the card back as it was; the first time there is none, so it is only copied."""
    device = _device(fleet, fault)
    image = device.folder / "image"
    await device.machine.kill()
    known = image.exists()
    if known:
        removed = fleet.folder / "removed.jsonl"
        put_card(device.state, image, removed, device.name, device.spool)
    if not known or rng.random() < 0.5:
        copy_card(device.state, image)
    await asyncio.sleep(fault.lasts_s)
    device.machine.start()
    return "" if known else "no image of this card as yet: one was taken"


async def _new_card(fleet: Fleet, fault: Fault, _rng: random.Random) -> str:
    device = _device(fleet, fault)
    await device.machine.kill()
    put_card(device.state, None, fleet.folder / "removed.jsonl", device.name, device.spool)
    await asyncio.sleep(fault.lasts_s)
    device.machine.start()
    return ""


async def _torn(fleet: Fleet, fault: Fault, rng: random.Random) -> str:
    device = _device(fleet, fault)
    await device.machine.kill()
    tear(device.spool, rng.randbytes(rng.randrange(1, 4096)))
    await asyncio.sleep(fault.lasts_s)
    device.machine.start()
    return ""


async def heal(fleet: Fleet) -> None:
    """Good weather, every process up and well: what is left must now come to its end."""
    links = [*fleet.bridge_links, *fleet.redis_links, *(d.link for d in fleet.devices)]
    for link in links:
        link.heal()
    for node in fleet.nodes:
        node.clock.write_text("+0\n")
    for machine in fleet.machines:
        machine.limit_files(None)
        machine.signal(signal.SIGCONT)
        if not machine.runs:
            with suppress(FedmqError):
                await _up_again(fleet, machine)
    with suppress(RedisError, OSError):
        async with connect(fleet.redis.url) as redis:
            await redis.config_set("maxmemory", "0")
    for device in fleet.devices:
        shutil.rmtree(device.folder / "image", ignore_errors=True)


STRIKES: Final[Mapping[str, Strike]] = {
    "kill": _kill,
    "freeze": _freeze,
    "restart": _restart,
    "wipe": _wipe,
    "failover": _failover,
    "partition": _partition,
    "one_way": _one_way,
    "reset": _reset,
    "half_open": _half_open,
    "corrupt": _corrupt,
    "slow": _slow,
    "poison": _poison,
    "flood": _flood,
    "redis_full": _redis_full,
    "disk_full": _disk_full,
    "clock": _clock,
    "old_card": _old_card,
    "new_card": _new_card,
    "torn": _torn,
}
