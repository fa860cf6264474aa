"""A real TCP over a real bad link. Skipped where the kernel or the user does not allow it."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedmq.simulator import tun
from fedmq.simulator.links import LinkModel, Loss
from fedmq.simulator.profiles import profile
from fedmq.simulator.tun import network
from schemas.errors import ConfigError


def missing() -> str:
    """What keeps this machine from it, if anything."""
    try:
        tun.refuse_unless_possible(LinkModel())
    except ConfigError as refused:
        return str(refused)
    name = f"fedmq-{os.getpid()}-probe"
    added = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return added.stderr.decode().strip() if added.returncode else ""


MISSING = missing()
needs_tun = pytest.mark.skipif(bool(MISSING), reason=f"user-space netem: {MISSING}")

DEVICE = """
import socket, sys
host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with socket.create_connection((host, port), timeout=60) as sock:
    sock.sendall(bytes(range(256)) * (size // 256))
    sock.shutdown(socket.SHUT_WR)
    got = b""
    while data := sock.recv(65536):
        got += data
assert got == (bytes(range(256)) * (size // 256))[::-1], len(got)
"""

PARENT = """
import time
from fedmq.simulator.links import LinkModel
from fedmq.simulator.tun import network
with network(LinkModel(), 1, port={port}) as net:
    print(net.namespace, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def broker() -> Iterator[int]:
    """A server on the loopback that answers a whole stream with its mirror image."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError:
                return
            with sock:
                got = b""
                while data := sock.recv(65_536):
                    got += data
                sock.sendall(got[::-1])

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield server.getsockname()[1]
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


def crossed(model: LinkModel, port: int, size: int) -> float:
    """Send that many bytes there and back from inside the namespace: the seconds it took."""
    with network(model, 1, port=port) as net:
        began = time.monotonic()
        device = [sys.executable, "-c", DEVICE, net.host, str(net.port), str(size)]
        subprocess.run(net.command(*device), check=True, timeout=100)
        return time.monotonic() - began


@needs_tun
def test_real_tcp_gets_its_bytes_whole_through_loss_delay_and_reordering(broker: int) -> None:
    model = LinkModel(
        rate_up=200_000.0,
        rate_down=200_000.0,
        delay_s=0.02,
        jitter_s=0.01,
        loss=Loss(p_good_to_bad=0.02, p_bad_to_good=0.4, loss_good=0.01, loss_bad=0.5),
        reorder=0.05,
        reorder_s=0.03,
        duplicate=0.02,
        frame_bytes=1358,
    )
    assert crossed(model, broker, 100 * 1024) > 2 * 100 * 1024 / 200_000


@needs_tun
def test_the_delay_and_the_rate_are_those_of_the_model(broker: int) -> None:
    slow = LinkModel(rate_up=50_000.0, rate_down=50_000.0, delay_s=0.2, frame_bytes=1358)
    # a handshake, the way up, the way down: four crossings at least
    assert crossed(slow, broker, 50 * 1024) > 4 * 0.2 + 2 * 50 * 1024 / 50_000


@needs_tun
def test_it_leaves_no_namespace_and_no_address_behind(broker: int) -> None:
    with network(LinkModel(), 1, port=broker) as net:
        assert Path("/run/netns", net.namespace).exists()
        here = subprocess.run(["ip", "address"], capture_output=True, check=True, text=True)
        assert "10.213." not in here.stdout
    assert not Path("/run/netns", net.namespace).exists()
    assert not Path("/run/netns", net.namespace.replace("near", "far")).exists()


@needs_tun
def test_two_networks_at_once_do_not_meet(broker: int) -> None:
    with network(LinkModel(), 1, port=broker) as one, network(LinkModel(), 1, port=broker) as two:
        assert one.namespace != two.namespace
        for net in (one, two):
            device = [sys.executable, "-c", DEVICE, net.host, str(net.port), "1024"]
            subprocess.run(net.command(*device), check=True, timeout=60)


@needs_tun
def test_it_takes_itself_down_when_its_parent_is_killed(broker: int) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            PARENT.format(port=broker),
        ],
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    name = parent.stdout.readline().decode().strip()
    assert Path("/run/netns", name).exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while Path("/run/netns", name).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path("/run/netns", name).exists()


@pytest.mark.parametrize(
    ("lacking", "remedy"), [("root", "root"), ("tun", "module tun"), ("ip", "iproute2")]
)
def test_what_is_missing_is_said_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: str, remedy: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000 if lacking == "root" else 0)
    monkeypatch.setattr(tun, "TUN", tmp_path / "tun")
    if lacking != "tun":
        (tmp_path / "tun").touch()
    monkeypatch.setattr(shutil, "which", lambda _: None if lacking == "ip" else "/sbin/ip")
    with pytest.raises(ConfigError, match=remedy), network(LinkModel(), 1, port=1):
        pass


def test_lorawan_is_refused_because_it_carries_no_ip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(tun, "TUN", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: "/sbin/ip")
    with (
        pytest.raises(ConfigError, match="no IP"),
        network(profile("lora-dr5"), 1, port=1),
    ):
        pass
