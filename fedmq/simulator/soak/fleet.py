"""Everything that a soak runs: processes, and the proxies between them, which the soak itself is.

    device --proxy--> broker <--proxy-- bridge (two, half of the shards each)
                                          |
    aggregator (two) --proxy--> Redis <---proxy
                                replica

The proxies before Redis are what a virtual address is elsewhere: after a failover they lead to the
new primary. Devices find the broker through their own proxy, which is also their weather.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from sys import executable

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from edge_agent.settings import AgentSettings
from fedmq.servers import free_port, listening
from fedmq.simulator.profiles import profile
from fedmq.simulator.proxy import Proxy, open_proxy
from fedmq.simulator.soak.device import DeviceFile
from fedmq.simulator.soak.machine import Machine
from fedmq.simulator.soak.plan import LEASE_S, TASK, Plan, device_name
from fedmq.simulator.soak.processes import Processes
from fedmq.simulator.soak.programs import broker_command, faketime, fedmq, redis_command
from fedmq.simulator.tun import network
from lifetimes.together import finished
from redis_session.connection import connect
from schemas.errors import FedmqError

HALVES = ("0-7", "8-f")
"""The shards of the two bridges."""

READY_S = 30.0
"""How long Redis may take to load its file."""

STOPPED_S = 60.0
"""How long it may take at most to stop everything."""


@dataclass
class Node:
    """One Redis: its process, its folder, its port."""

    machine: Machine
    folder: Path
    port: int
    clock: Path

    @property
    def url(self) -> str:
        """Where it listens itself, past every proxy."""
        return f"redis://127.0.0.1:{self.port}/0"


@dataclass
class DeviceHere:
    """One device: its process, its link, its folder."""

    name: str
    machine: Machine
    link: Proxy
    folder: Path

    @property
    def state(self) -> Path:
        """Its card: all that it must not forget."""
        return self.folder / "state"

    @property
    def spool(self) -> Path:
        """The file of its spool."""
        return self.state / f"{TASK}.{self.name}.sqlite"

    @property
    def ledger(self) -> Path:
        """The file of its witness."""
        return self.folder / "ledger.jsonl"


class Fleet:
    """All of it, while its context is open.

    Attributes:
        on_primary: is told which node is the primary, before anybody is led there.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.folder = folder
        self.on_primary: Callable[[int], None] = lambda _: None
        self.processes = Processes(processes_file(folder))
        self.nodes: list[Node] = []
        self.primary = 0
        self.broker = Machine("broker", lambda: (), folder)
        self.broker_port = 0
        self.bridges: list[Machine] = []
        self.aggregators: list[Machine] = []
        self.devices: list[DeviceHere] = []
        self.bridge_links: list[Proxy] = []
        self.redis_links: list[Proxy] = []

    @property
    def redis(self) -> Node:
        """The primary."""
        return self.nodes[self.primary]

    @property
    def replica(self) -> Node:
        """The other one."""
        return self.nodes[1 - self.primary]

    @property
    def machines(self) -> Sequence[Machine]:
        """Every process."""
        servers = [node.machine for node in self.nodes]
        devices = [device.machine for device in self.devices]
        return [self.broker, *servers, *self.bridges, *self.aggregators, *devices]

    @property
    def drain_file(self) -> Path:
        """When it is there, devices train no more."""
        return self.folder / "drain"

    def primary_of(self, index: int) -> int | None:
        """Whom a node follows: nobody, or the primary's port."""
        return None if index == self.primary else self.redis.port

    async def ready(self, node: Node) -> None:
        """Wait until a Redis answers. Raises FedmqError."""
        try:
            async with asyncio.timeout(READY_S), connect(node.url) as redis:
                while not await _pongs(redis):  # noqa: ASYNC110 - another process answers
                    await asyncio.sleep(0.05)
        except TimeoutError as exc:
            log = node.machine.folder / f"{node.machine.name}.log"
            raise FedmqError(f"{node.machine.name} does not answer; {log} tells why") from exc

    def machine(
        self,
        name: str,
        command: Callable[[], Sequence[str]],
        environ: Mapping[str, str] | None = None,
    ) -> Machine:
        """A process of this fleet, with its log beside the others."""
        logs = self.folder / "logs"
        return Machine(name, command, logs, environ or {}, started=self.processes.note)

    def take_over(self) -> None:
        """The replica is the primary from now on: lead everybody there."""
        self.primary = 1 - self.primary
        self.on_primary(self.primary)
        for link in self.redis_links:
            link.retarget(self.redis.port)


async def _pongs(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except (RedisError, OSError):
        return False


@asynccontextmanager
async def fleet(plan: Plan, folder: Path, *, primary: int = 0) -> AsyncIterator[Fleet]:
    """Start the servers, not yet bridges, aggregators and devices; stop everything at the end."""
    here = Fleet(plan, folder)
    here.primary = primary
    async with AsyncExitStack() as stack:
        # who is told to stop, and told again, stops them all the same
        stack.push_async_callback(lambda: finished(_stop(here), within_s=STOPPED_S))
        _lay_out(here)
        for node in here.nodes:
            node.machine.start()
        here.broker.start()
        for node in here.nodes:
            await here.ready(node)
        await listening(here.broker_port, "the broker")
        await _connect(here, stack)
        yield here


async def _stop(here: Fleet) -> None:
    """Devices first, servers last."""
    for machine in reversed(here.machines):
        machine.limit_files(None)
    await asyncio.gather(*(device.machine.stop() for device in here.devices))
    await asyncio.gather(*(m.stop() for m in [*here.bridges, *here.aggregators]))
    await asyncio.gather(*(m.stop() for m in [here.broker, *(n.machine for n in here.nodes)]))


def _lay_out(here: Fleet) -> None:
    """The servers' folders, ports and commands."""
    plan, folder = here.plan, here.folder
    (folder / "logs").mkdir(exist_ok=True)
    for index, name in enumerate(("redis-a", "redis-b")):
        data, clock = folder / name, folder / f"{name}.clock"
        data.mkdir(exist_ok=True)
        clock.write_text("+0\n")
        port = free_port()

        def command(data: Path = data, port: int = port, index: int = index) -> Sequence[str]:
            return redis_command(plan.redis, data, port, here.primary_of(index))

        machine = here.machine(name, command, faketime(plan.redis, clock))
        here.nodes.append(Node(machine, data, port, clock))
    (folder / "broker").mkdir(exist_ok=True)
    here.broker_port = free_port()
    here.broker = here.machine(
        "broker", lambda: broker_command(plan.broker, folder / "broker", here.broker_port)
    )


async def _connect(here: Fleet, stack: AsyncExitStack) -> None:
    """The proxies, and the processes that find each other through them."""
    config = here.folder / "config"
    config.mkdir(exist_ok=True)

    async def door(port: int, name: str) -> Proxy:
        rng = random.Random(f"{here.plan.seed}/{name}")  # noqa: S311 - a seeded simulation
        return await stack.enter_async_context(open_proxy(port, None, rng))

    for number, half in enumerate(HALVES):
        mqtt, redis = await door(here.broker_port, "mqtt"), await door(here.redis.port, "redis")
        here.bridge_links.append(mqtt)
        here.redis_links.append(redis)
        file = config / f"bridge-{number}.toml"
        file.write_text(_bridge(number, half, mqtt.port, redis.port))
        command = fedmq("bridge", "--config", str(file))
        here.bridges.append(here.machine(f"bridge-{number}", partial(list, command)))
    for number in range(2):
        redis = await door(here.redis.port, "redis")
        here.redis_links.append(redis)
        file = config / f"aggregator-{number}.toml"
        file.write_text(_aggregator(here.folder / "archive", redis.port))
        command = fedmq("aggregator", "--config", str(file))
        here.aggregators.append(here.machine(f"aggregator-{number}", partial(list, command)))
    for number in range(here.plan.devices):
        here.devices.append(await _device(here, stack, number))


def _bridge(number: int, half: str, mqtt_port: int, redis_port: int) -> str:
    return f"""[bridge]
mqtt_port = {mqtt_port}
mqtt_keepalive_s = 5
mqtt_connect_timeout_s = 5.0
redis_url = "redis://127.0.0.1:{redis_port}/0"
client_id = "bridge-{number}"
shards = "{half}"
lease_s = {LEASE_S}
wait_replicas = 1
slow_s = 1.0
max_message_bytes = 65536
log_max_bytes = {16 << 20}
"""


def _aggregator(archive: Path, redis_port: int) -> str:
    return f"""[aggregator]
redis_url = "redis://127.0.0.1:{redis_port}/0"
lease_s = {LEASE_S}
log_keep_s = 20.0
log_keep_bytes = {2 << 20}
dead_keep_bytes = {1 << 20}
archive_url = "{archive}"
archive_bytes = 65536
archive_seconds = 5.0
"""


async def _device(here: Fleet, stack: AsyncExitStack, number: int) -> DeviceHere:
    """A device's folder, its link and its process; behind a network of its own when asked for."""
    plan, name = here.plan, device_name(number)
    folder = here.folder / "devices" / name
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{plan.seed}/{name}")  # noqa: S311 - a seeded simulation
    model = profile(plan.profile_of(number))
    weather = None if plan.real_tcp else model
    link = await stack.enter_async_context(open_proxy(here.broker_port, weather, rng))
    host, port, inside = "127.0.0.1", link.port, list[str]()
    if plan.real_tcp:
        net = stack.enter_context(network(model, plan.seed * 1000 + number, port=link.port))
        host, port, inside = net.host, net.port, net.command()
    told = DeviceFile(
        settings=AgentSettings(
            device=name,
            task=TASK,
            trainer="",
            mqtt_host=host,
            mqtt_port=port,
            mqtt_keepalive_s=10,
            mqtt_connect_timeout_s=10.0,
            state_dir=str(folder / "state"),
            resend_s=1.0,
            resend_longest_s=8.0,
            silence_s=4.0,
            reconnect_s=2.0,
            disk_mb=8,
            seed=plan.seed * 1000 + number,
        ),
        ledger=str(folder / "ledger.jsonl"),
        drain=str(here.drain_file),
        pace_s=0.3,
    )
    file = folder / "device.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(told)))
    command = [*inside, executable, "-m", "fedmq.simulator.soak.device", str(file)]
    machine = here.machine(name, lambda: command)
    return DeviceHere(name, machine, link, folder)


def processes_file(folder: Path) -> Path:
    """Where a soak keeps the numbers of its processes."""
    return folder / "processes.json"
