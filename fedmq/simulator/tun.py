"""Real TCP over a bad link: netem in user space, on two TUN devices. Root on Linux only.

    with network(profile("nb-iot"), seed=1, port=1883) as net:
        subprocess.Popen(net.command("fedmq-agent", ...))  # it finds the broker at net.host

A process of its own (`python -m fedmq.simulator.tun`) makes two network namespaces with a TUN
device each, carries IP packets from one to the other through `Link.transmit`, and in the far one
accepts TCP at `host:port` and pipes it to the same port of this machine's loopback. The kernel's
own TCP meets the loss and the delay. All addresses live inside the two namespaces: the same pair in
every network, and none on the host.

When its standard input ends, as it does when its parent dies, it takes the namespaces down.
Refuses with ConfigError: no root, no /dev/net/tun, no `ip`, or a link that carries no IP.
"""

import asyncio
import ctypes
import fcntl
import heapq
import os
import platform
import random
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from fedmq.simulator.links import Direction, Link, LinkModel
from fedmq.simulator.proxy import Proxy
from lifetimes.loop import run
from schemas.errors import ConfigError, InvariantError

HOST: Final = "10.213.0.2"
DEVICE: Final = "10.213.0.1"
TUN: Final = Path("/dev/net/tun")
LEAST_MTU: Final = 576
"""What every IPv4 host must be able to receive (RFC 791)."""

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN_NO_PI: Final = 0x1001
_CLONE_NEWNET: Final = 0x40000000


@dataclass(frozen=True, slots=True)
class Network:
    """Where a device is to be started, and where it finds the broker from there.

    Attributes:
        namespace: the name of the device's network namespace.
        host: the broker's address as the device sees it.
        port: the broker's port, the same as on this machine's loopback.
    """

    namespace: str
    host: str
    port: int

    def command(self, *arguments: str) -> list[str]:
        """Return the command that starts another inside the device's namespace."""
        return ["ip", "netns", "exec", self.namespace, *arguments]


class Setup(msgspec.Struct, frozen=True):
    """What the process is told on its standard input."""

    model: LinkModel
    seed: int
    port: int


@contextmanager
def network(model: LinkModel, seed: int, *, port: int) -> Iterator[Network]:
    """Lay such a link between a new namespace and `port` of this machine's loopback.

    Opening and closing block for some tenths of a second.
    """
    refuse_unless_possible(model)
    process = subprocess.Popen(
        [sys.executable, "-m", "fedmq.simulator.tun"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the parent; the end of its input is for this one
    )
    if process.stdin is None or process.stdout is None:
        raise InvariantError("a process without the pipes that it was given")
    try:
        with suppress(BrokenPipeError):
            process.stdin.write(_framed(msgspec.msgpack.encode(Setup(model, seed, port))))
            process.stdin.flush()
        namespace = process.stdout.readline().decode().strip()
        if not namespace:
            raise ConfigError("real_tcp", "the kernel refused it; what it said stands above")
        yield Network(namespace, HOST, port)
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def refuse_unless_possible(model: LinkModel) -> None:
    """Raise ConfigError where it cannot work, saying what is missing."""
    if platform.system() != "Linux":
        raise ConfigError("real_tcp", "needs Linux; leave it out and the proxy does the weather")
    if os.geteuid() != 0:
        raise ConfigError("real_tcp", "needs root; leave it out and the proxy does the weather")
    if not TUN.exists():
        raise ConfigError("real_tcp", f"needs {TUN}: load the kernel module tun")
    if shutil.which("ip") is None:
        raise ConfigError("real_tcp", "needs the command ip: install the package iproute2")
    if model.lora_sf is not None or model.frame_bytes < LEAST_MTU:
        remedy = f"carries no IP: frames of {model.frame_bytes} bytes, below {LEAST_MTU}"
        raise ConfigError("profile", remedy)


def _framed(data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + data


# the process


async def serve() -> None:
    """Be the network until standard input ends."""
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    (size,) = struct.unpack("!I", await stdin.readexactly(4))
    setup = msgspec.msgpack.decode(await stdin.readexactly(size), type=Setup)
    rng = random.Random(setup.seed)  # noqa: S311 - a seeded simulation
    near, far = (f"fedmq-{os.getpid()}-{side}" for side in ("near", "far"))
    mtu = setup.model.frame_bytes
    with (
        namespace(near),
        namespace(far),
        tun(near, DEVICE, mtu) as device,
        tun(far, HOST, mtu) as host,
    ):
        with inside(far):
            door = socket.create_server((HOST, setup.port))
        link = Link(setup.model, rng)
        with carrier(device, host, link):
            async with pipe(door, setup.port):
                sys.stdout.write(f"{near}\n")
                sys.stdout.flush()
                await stdin.read()


@contextmanager
def carrier(device: int, host: int, link: Link) -> Iterator[None]:
    """Carry packets between the two TUN devices as the link lets them."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    numbers = count()
    waiting: list[tuple[float, int, int, bytes]] = []

    def take(source: int, target: int, direction: Direction) -> None:
        with suppress(BlockingIOError):
            packet = os.read(source, 65_536)
            if packet[0] >> 4 != 4:  # an interface talks IPv6 to itself when it comes up
                return
            for delivery in link.transmit(loop.time() - began, len(packet), direction):
                heapq.heappush(waiting, (delivery.at_s, next(numbers), target, packet))
                loop.call_at(began + delivery.at_s, give)

    def give() -> None:
        """Write what is due: there are as many of these calls as packets, each at its time."""
        _, _, target, packet = heapq.heappop(waiting)
        with suppress(OSError):  # a full device drops, and a closed one too
            os.write(target, packet)

    loop.add_reader(device, take, device, host, "up")
    loop.add_reader(host, take, host, device, "down")
    try:
        yield
    finally:
        loop.remove_reader(device)
        loop.remove_reader(host)


@asynccontextmanager
async def pipe(door: socket.socket, port: int) -> AsyncIterator[None]:
    """Pipe who comes in by that door to a port of this machine's loopback."""
    proxy = Proxy(port, None, random.Random(0))  # noqa: S311 - good weather draws nothing
    server = await asyncio.start_server(proxy.handle, sock=door)
    try:
        yield
    finally:
        server.close()
        await proxy.close()


@contextmanager
def namespace(name: str) -> Iterator[None]:
    """Have a network namespace of that name."""
    _ip("netns", "add", name)
    try:
        yield
    finally:
        _ip("netns", "delete", name)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Have this thread in a namespace; what it opens there stays there."""
    # os.setns came with Python 3.12
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        Path("/proc/thread-self/ns/net").open("rb") as home,
        Path("/run/netns", name).open("rb") as there,
    ):
        _enter(libc, there.fileno())
        try:
            yield
        finally:
            _enter(libc, home.fileno())


@contextmanager
def tun(name: str, address: str, mtu: int) -> Iterator[int]:
    """Have a TUN device inside a namespace: its descriptor."""
    with inside(name):
        descriptor = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    try:
        with inside(name):
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN_NO_PI))
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "address", "add", f"{address}/30", "dev", "tun0")
        _ip("-n", name, "link", "set", "tun0", "mtu", str(mtu), "up")
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


if __name__ == "__main__":
    run(serve())
