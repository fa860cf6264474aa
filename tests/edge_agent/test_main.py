"""`fedmq-agent` as its user meets it: a process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import paho.mqtt.client as paho
import pytest
import servers

GOOD = {
    "--task": "pumps",
    "--device": "pump-1",
    "--trainer": "good_trainer:Good",
    "--state-dir": "state",
}
TRAINERS = """
class Good:
    def __init__(self, count=1):
        if count == 13:
            raise ValueError("13 is unlucky")

    def train(self, tensors, options, rng):
        raise NotImplementedError
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "good_trainer.py").write_text(TRAINERS)
    return tmp_path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("FEDMQ_")}
    return kept | {"PYTHONPATH": str(servers.ROOT)} | dict(extra or {})


def command(flags: Mapping[str, str | None], *more: str) -> list[str]:
    given = [part for flag, text in flags.items() if text is not None for part in (flag, text)]
    return [sys.executable, "-m", "edge_agent", *given, *more]


def run(
    home: Path,
    flags: Mapping[str, str | None],
    *more: str,
    environ: Mapping[str, str] | None = None,
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(flags, *more),
        cwd=home,
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_help_teaches_how_to_begin(home: Path) -> None:
    told = run(home, {}, "--help")
    assert told.returncode == 0
    for taught in ("example:", "--trainer mycode.trainer:PumpTrainer", "FEDMQ_MQTT_PASSWORD"):
        assert taught in told.stdout
    for taught in ("train(tensors, options, rng)", "SoftmaxTrainer", "[agent]", "KEY=VALUE"):
        assert taught in told.stdout


BAD: dict[str, tuple[dict[str, str | None], tuple[str, ...], dict[str, str], str]] = {
    "no task": ({"--task": None}, (), {}, "task"),
    "no device": ({"--device": None}, (), {}, "device"),
    "no trainer": ({"--trainer": None}, (), {}, "trainer"),
    "a trainer without a class": ({"--trainer": "good_trainer"}, (), {}, "trainer"),
    "a trainer that is no module": ({"--trainer": "nowhere:Good"}, (), {}, "trainer"),
    "a trainer that is no class": ({"--trainer": "good_trainer:Bad"}, (), {}, "trainer"),
    "an option without a value": ({}, ("--option", "count"), {}, "option"),
    "an option without a key": ({}, ("--option", "=1"), {}, "option"),
    "an option that is unknown": ({}, ("--option", "colour=red"), {}, "option"),
    "an option that is refused": ({}, ("--option", "count=13"), {}, "option"),
    "a bad name of a device": ({"--device": "Pump 1"}, (), {}, "device"),
    "a bad name of a task": ({"--task": "a/b"}, (), {}, "task"),
    "a bad prefix": ({"--prefix": "a/+"}, (), {}, "prefix"),
    "a port that is no number": ({}, (), {"FEDMQ_MQTT_PORT": "mqtt"}, "mqtt_port"),
    "a port out of range": ({}, (), {"FEDMQ_MQTT_PORT": "70000"}, "mqtt_port"),
    "a pause of nothing": ({"--resend-s": "0"}, (), {}, "resend_s"),
}


@pytest.mark.parametrize(("changes", "more", "environ", "field"), BAD.values(), ids=BAD)
def test_what_cannot_work_is_one_line_that_names_the_field(
    home: Path,
    changes: dict[str, str | None],
    more: tuple[str, ...],
    environ: dict[str, str],
    field: str,
) -> None:
    told = run(home, GOOD | changes, *more, environ=environ)
    assert told.returncode == 2, told.stderr
    (line,) = told.stderr.splitlines()
    assert line.startswith(f"fedmq-agent: {field}: ")


def test_garbage_for_a_spool_is_one_line_too(home: Path) -> None:
    (home / "state").mkdir()
    (home / "state" / "pumps.pump-1.sqlite").write_bytes(b"garbage" * 1000)
    told = run(home, GOOD)
    assert told.returncode == 2
    (line,) = told.stderr.splitlines()
    assert "move it away" in line


@pytest.mark.parametrize("flag", ["--mqtt-password", "--password"])
def test_a_password_is_not_accepted_on_the_command_line(home: Path, flag: str) -> None:
    told = run(home, GOOD, flag, "secret")
    assert told.returncode == 2
    assert "unrecognized arguments" in told.stderr


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.lab_broker(tmp_path) as server:
        yield server


def wait_for_birth(broker: servers.Server) -> None:
    """Return when the device has said that it is online."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    born: list[bytes] = []
    client.on_message = lambda _client, _userdata, message: born.append(message.payload)
    client.on_connect = lambda *_: client.subscribe("fedmq/v1/pumps/state/pump-1", 1)
    client.connect(servers.HOST, broker.port)
    for _ in range(200):
        client.loop(0.1)
        if any(b'"online":true' in payload for payload in born):
            break
    client.disconnect()
    client.loop(0.1)
    assert born, "the device never came online"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(home: Path, broker: servers.Server, number: int) -> None:
    more = ("--mqtt-port", str(broker.port))
    with subprocess.Popen(
        command(GOOD, *more), cwd=home, env=environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for_birth(broker)
            process.send_signal(number)
            _, told = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0, told
    assert "stopped open=0" in told
    assert "Traceback" not in told


def test_settings_may_stand_in_a_file_and_flags_win(home: Path, broker: servers.Server) -> None:
    (home / "agent.toml").write_text(
        f'[agent]\ntask = "other"\ndevice = "pump-1"\nmqtt_port = {broker.port}\n'
        'trainer = "good_trainer:Good"\nstate_dir = "state"\n'
    )
    flags = {"--config": "agent.toml", "--task": "pumps"}
    with subprocess.Popen(command(flags), cwd=home, env=environment()) as process:
        try:
            wait_for_birth(broker)
        finally:
            process.kill()
    assert (home / "state" / "pumps.pump-1.sqlite").exists()


def test_a_file_or_folder_that_cannot_be_used_is_one_line_that_names_it(home: Path) -> None:
    (home / "file").touch()
    for flag, field in (("--config", "config"), ("--state-dir", "state_dir")):
        done = run(home, GOOD | {flag: "file/below"})
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"fedmq-agent: {field}: ")
