"""`fedmq lab`: a whole server side from one command, which goes on where it was."""

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import servers
from integration.stack import ROOT, Process, eventually, fedmq, run_fedmq

SPEC = "[[params.tensors]]\nname = 'w'\nshape = [4]\n"


@contextmanager
def lab(folder: Path, mqtt: int, redis: int) -> Iterator[Process]:
    ports = ("--mqtt-port", str(mqtt), "--redis-port", str(redis))
    process = Process(fedmq("lab", "--folder", str(folder), *ports), folder.with_suffix(".log"))
    process.start()
    try:
        eventually(lambda: "Ctrl-C ends it" in process.log.read_text(), "it says where it is")
        yield process
    finally:
        process.stop()
        process.log.unlink()


def closed(*ports: int) -> bool:
    """Whether nobody listens there any more."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex((servers.HOST, port)) == 0:
                return False
    return True


def test_a_task_lives_on_when_the_lab_is_started_again(tmp_path: Path) -> None:
    folder, mqtt, redis = tmp_path / "lab", servers.free_port(), servers.free_port()
    url = f"redis://127.0.0.1:{redis}/0"
    (tmp_path / "task.toml").write_text(SPEC)

    def version() -> object:
        shown = run_fedmq("task", "show", "mine", "--json", "--redis-url", url)
        return json.loads(shown).get("published")

    with lab(folder, mqtt, redis):
        made = ("--spec", str(tmp_path / "task.toml"), "--redis-url", url)
        run_fedmq("task", "create", "mine", *made)
        eventually(lambda: version() == 0, "bridge and aggregator serve it")
    eventually(lambda: closed(mqtt, redis), "all servers have ended with it")
    with lab(folder, mqtt, redis):
        assert version() == 0


def test_two_labs_do_not_share_a_folder(tmp_path: Path) -> None:
    ports = [servers.free_port() for _ in range(4)]
    with lab(tmp_path / "lab", *ports[:2]) as first:
        other = ("--mqtt-port", str(ports[2]), "--redis-port", str(ports[3]))
        command = fedmq("lab", "--folder", str(tmp_path / "lab"), *other)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert re.search(r"belongs to a lab that runs \(process \d+\): stop it", done.stderr)
        hint = f"export FEDMQ_MQTT_PORT={ports[0]} FEDMQ_REDIS_URL=redis://127.0.0.1:{ports[1]}/0"
        assert hint in first.log.read_text()


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((servers.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = fedmq("lab", "--folder", str(tmp_path / "lab"), "--mqtt-port", str(port))
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"fedmq: mqtt_port: {port} is taken")
    assert len(done.stderr.splitlines()) == 1


def test_a_server_that_ends_by_itself_ends_the_lab_and_is_named(tmp_path: Path) -> None:
    mqtt, redis = servers.free_port(), servers.free_port()
    with lab(tmp_path / "lab", mqtt, redis) as process:
        bridge = next(
            child
            for child in children(process)
            if "bridge" in Path(f"/proc/{child}/cmdline").read_text()
        )
        subprocess.run(["kill", f"-{signal.SIGKILL.value}", str(bridge)], check=True)
        eventually(lambda: not process.running, "the lab ends too")
        assert "bridge has ended" in process.log.read_text()
    eventually(lambda: closed(mqtt, redis), "the others have ended with it")


def children(process: Process) -> list[int]:
    assert process._process is not None
    pid = process._process.pid
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
