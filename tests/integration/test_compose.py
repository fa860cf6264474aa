"""docker-compose.yml without Docker: every service's own command and environment, run natively.

No Docker engine runs here. What is read from the file is what is run; only host names, ports and
the folders that containers mount are mapped to this machine.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import servers
import yaml

from tests.integration.stack import Process, eventually

ROOT = servers.ROOT
FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = FILE["services"]
SECRETS = {
    "BRIDGE_PASSWORD": "of the bridge",
    "WATCH_PASSWORD": "of the watch",
    "DEVICE_PASSWORD": "of a device",
}


@dataclass
class Native:
    """Where the containers' world lies on this machine."""

    folder: Path
    mqtt: int = field(default_factory=servers.free_port)
    redis: int = field(default_factory=servers.free_port)

    def places(self, service: str) -> dict[str, str]:
        """What containers say -> what it is here. Volumes are folders of their own."""
        found = {
            "mosquitto:1883": f"127.0.0.1:{self.mqtt}",
            "redis:6379": f"127.0.0.1:{self.redis}",
            "/app/": f"{ROOT}/",
        }
        for volume in SERVICES[service].get("volumes", []):
            source, target = volume.split(":")[:2]
            here = ROOT / source if source.startswith(".") else self.folder / "volumes" / source
            found[target] = str(here)
        return found

    def translated(self, service: str, text: str) -> str:
        for secret, value in SECRETS.items():
            text = text.replace(f"${{{secret}:?set it in .env}}", value)
        text = text.replace("$$", "$")
        # the longest first: a mount may lie inside another one
        for there, here in sorted(self.places(service).items(), key=lambda pair: -len(pair[0])):
            text = text.replace(there, here)
        return text

    def command(self, service: str) -> list[str]:
        return [self.translated(service, part) for part in SERVICES[service]["command"]]

    def environment(self, service: str) -> dict[str, str]:
        given: Mapping[str, str] = SERVICES[service].get("environment", {})
        plain = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
        path = f"{Path(sys.executable).parent}:{plain['PATH']}:/usr/sbin"
        return (
            plain
            | {"PATH": path, "PYTHONPATH": str(ROOT)}
            | {name: self.translated(service, value) for name, value in given.items()}
        )

    def workdir(self, service: str) -> Path:
        return Path(self.translated(service, SERVICES[service].get("working_dir", "/app/")))

    def process(self, service: str, *more: str) -> Process:
        return Process(
            [*self.command(service), *more],
            self.folder / f"{service}.log",
            env=self.environment(service),
            cwd=self.workdir(service),
        )

    def once(self, service: str) -> None:
        """Run a service that ends by itself."""
        subprocess.run(
            self.command(service),
            env=self.environment(service),
            cwd=self.workdir(service),
            check=True,
            capture_output=True,
            timeout=60,
        )

    def healthy(self, service: str) -> bool:
        kind, *command = SERVICES[service]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            command, env=self.environment(service), cwd=ROOT, capture_output=True, check=False
        )
        return done.returncode == 0

    def mosquitto_conf(self) -> Path:
        """The shipped configuration, its port and folders mapped, beside the shipped ACL."""
        target = "/mosquitto/config/compose.conf"
        text = Path(self.translated("mosquitto", target)).read_text()
        text = text.replace("listener 1883", f"listener {self.mqtt} 127.0.0.1")
        path = self.folder / "compose.conf"
        path.write_text(self.translated("mosquitto", text) + "\nuser root\n")
        return path


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Native]:
    """The whole file, up and running."""
    there = Native(tmp_path_factory.mktemp("compose"))
    for volume in FILE["volumes"]:
        (there.folder / "volumes" / volume).mkdir(parents=True)
    there.once("passwords")
    redis = there.process("redis", "--port", str(there.redis), "--bind", "127.0.0.1")
    mosquitto = there.process("mosquitto")
    program, flag, _ = mosquitto.command
    mosquitto.command = [program, flag, str(there.mosquitto_conf())]
    others = [there.process(name) for name in ("bridge", "aggregator", *DEVICES)]
    try:
        redis.start()
        eventually(lambda: servers.pongs(there.redis), "Redis answers", 20)
        mosquitto.start()
        eventually(lambda: servers.reacts(there.mqtt), "mosquitto answers", 20)
        there.once("task")
        for process in others:
            process.start()
        yield there
    finally:
        for process in (*others, mosquitto, redis):
            if process.running:
                process.stop()


DEVICES = [name for name, service in SERVICES.items() if service.get("image") == "fedmq-edge"]


def fedmq(native: Native, *arguments: str) -> Any:
    done = subprocess.run(
        ["fedmq", *arguments, "--json"],
        env=native.environment("aggregator"),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_the_fleet_trains(native) -> None:
    assert len(DEVICES) == 3
    eventually(
        lambda: (fedmq(native, "task", "show", "pumps").get("published") or 0) >= 3, "it trains"
    )

    def everyone() -> bool:
        rows = fedmq(native, "device", "list", "pumps")
        return {row["device"] for row in rows if row["updates_folded"]} == set(DEVICES)

    eventually(everyone, "every device has taken part")
    assert fedmq(native, "task", "show", "pumps")["updates_rejected"] == {}


@pytest.mark.parametrize("service", ["bridge", "aggregator"])
def test_a_service_is_healthy_as_long_as_it_works(native, service) -> None:
    eventually(lambda: native.healthy(service), "it is healthy")


def test_a_service_that_is_gone_is_not_healthy(native) -> None:
    elsewhere = {**SERVICES["bridge"]["environment"], "FEDMQ_REDIS_URL": "redis://127.0.0.1:1/0"}
    done = subprocess.run(
        ["fedmq", "health", "bridge"],
        env=native.environment("bridge") | elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_every_file_that_the_images_copy_is_there() -> None:
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = line.split()[1:]
            for source in sources:
                assert (ROOT / source).exists(), line


def test_every_package_of_the_wheel_is_copied_into_the_image() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = (ROOT / "Dockerfile").read_text()
    assert [name for name in packages if f"COPY {name} {name}\n" not in copied] == []


def test_no_secret_stands_in_the_file() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value.startswith("${"), name
