import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import servers

SPEC = '[[params.tensors]]\nname = "w"\nshape = [3, 2]\n'


def fedmq(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FEDMQ_")}
    return subprocess.run(
        [sys.executable, "-m", "fedmq.cli", *arguments],
        env=clean | {"COLUMNS": "120", "NO_COLOR": "1"} | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    """One line on stderr that holds the words, and the exit code."""
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert all(word in line for word in words), line


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.redis_server(tmp_path_factory.mktemp("redis")) as redis:
        yield f"redis://{servers.HOST}:{redis.port}/0"


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "task.toml"
    path.write_text(SPEC)
    return path


COMMANDS = [
    (),
    ("demo",),
    ("bridge",),
    ("aggregator",),
    ("lab-broker",),
    ("tail",),
    ("task",),
    ("task", "create"),
    ("task", "show"),
    ("model",),
    ("model", "pull"),
    ("serve",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches_every_command(command: tuple[str, ...]) -> None:
    done = fedmq(*command, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert len(done.stdout.splitlines()) > 5


def test_fedmq_agent_is_the_agent_with_all_its_flags() -> None:
    done = fedmq("agent", "--help")
    assert done.returncode == 0
    for taught in ("usage: fedmq agent", "--data WHAT", "--label COLUMN", "--once"):
        assert taught in done.stdout
    refused = fedmq("agent", "--task", "pumps", "--device", "pump-1", "--data", "nowhere.csv")
    assert refused.returncode == 2
    assert "data: 'nowhere.csv' does not exist" in refused.stderr


def test_a_task_is_created_shown_and_found_again(redis_url: str, spec: Path) -> None:
    created = fedmq("task", "create", "made", "--spec", str(spec), "--redis", redis_url)
    assert created.returncode == 0, created.stderr
    assert "created task made: 6 parameters" in created.stdout
    shown = json.loads(fedmq("task", "show", "made", "--json", "--redis", redis_url).stdout)
    assert shown["task"] == "made"
    assert shown["spec"]["params"]["tensors"] == [{"name": "w", "shape": [3, 2]}]
    assert shown["spec"]["init"] == {"kind": "glorot", "seed": 0}
    assert "made" in fedmq("task", "show", "made", "--redis", redis_url).stdout


def test_an_initial_model_names_its_own_tensors(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    np.savez(tmp_path / "model.npz", a=np.ones((2, 2), np.float64), b=np.zeros(3, np.float32))
    files = ("--spec", str(tmp_path / "empty.toml"), "--init", str(tmp_path / "model.npz"))
    done = fedmq("task", "create", "from-npz", *files, "--redis", redis_url)
    assert "created task from-npz: 7 parameters" in done.stdout, done.stderr
    shown = fedmq("task", "show", "from-npz", "--json", "--redis", redis_url)
    assert json.loads(shown.stdout)["spec"]["init"] is None


def test_a_task_is_never_created_twice(redis_url: str, spec: Path) -> None:
    command = ("task", "create", "twice", "--spec", str(spec), "--redis", redis_url)
    assert fedmq(*command).returncode == 0
    refused(fedmq(*command), "twice", "exists")


def test_a_task_that_nobody_has_folded_yet_has_no_versions(redis_url: str, spec: Path) -> None:
    created = fedmq("task", "create", "early", "--spec", str(spec), "--redis", redis_url)
    assert created.returncode == 0, created.stderr
    listed = fedmq("model", "list", "early", "--json", "--redis", redis_url)
    assert json.loads(listed.stdout) == []
    assert "is the aggregator running?" in listed.stderr
    refused(fedmq("model", "list", "nowhere", "--redis", redis_url), "nowhere", "does not exist")


def test_settings_come_from_the_environment_and_from_a_file(
    redis_url: str, spec: Path, tmp_path: Path
) -> None:
    by_env = fedmq("task", "create", "env", "--spec", str(spec), env={"FEDMQ_REDIS_URL": redis_url})
    assert by_env.returncode == 0, by_env.stderr
    (tmp_path / "fedmq.toml").write_text(f'[redis]\nredis_url = "{redis_url}"\n')
    by_file = fedmq("task", "show", "env", "--config", str(tmp_path / "fedmq.toml"))
    assert by_file.returncode == 0, by_file.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[strategy\n", ("TOML",)),
        ('[strategy]\nname = "fedsgd"\n', ("strategy.name", "fedsgd")),
        ("[strategy]\nbuffer_size = 0\n", ("strategy.buffer_size",)),
        ("[strategy]\nbufer_size = 3\n", ("strategy", "bufer_size")),
        (SPEC + '[codec]\nname = "zip"\n', ("codec.name", "zip")),
        ("", ("params", "missing")),
        ('[[params.tensors]]\nname = "w"\nshape = [-1]\n', ("params",)),
    ],
)
def test_a_bad_specification_is_one_line_that_names_the_field(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    refused(fedmq("task", "create", "bad", "--spec", str(path)), *words)


def test_bad_arguments_are_one_line_that_names_the_field(spec: Path, tmp_path: Path) -> None:
    refused(fedmq("task", "create", "Bad Name", "--spec", str(spec)), "task", "Bad Name")
    refused(fedmq("task", "create", "x", "--spec", str(tmp_path / "none.toml")), "spec")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    torn = ("--spec", str(spec), "--init", str(tmp_path / "torn.npz"))
    refused(fedmq("task", "create", "x", *torn), "init", "torn.npz")
    refused(fedmq("bridge", "--mqtt-port", "0"), "mqtt_port")
    refused(fedmq("aggregator", "--log-level", "loud"), "log_level", "loud")
    refused(fedmq("bridge", "--config", str(tmp_path / "none.toml")), "config")
    (tmp_path / "fedmq.toml").write_text("[bridge]\nmqtt_hots = 'x'\n")
    refused(fedmq("bridge", "--config", str(tmp_path / "fedmq.toml")), "bridge.mqtt_hots")


@pytest.mark.parametrize("command", [("bridge",), ("aggregator",), ("task", "show", "x")])
def test_a_url_that_cannot_be_read_is_refused_before_anything_begins(
    command: tuple[str, ...],
) -> None:
    for url in ("nonsense", "http://:s3cret@host", "redis://host:port/0"):
        done = fedmq(*command, env={"FEDMQ_REDIS_URL": url})
        refused(done, "redis_url", "redis://host:port/0")
        assert "s3cret" not in done.stderr


def test_a_demo_that_cannot_begin_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(fedmq("demo", "--output", str(tmp_path / "file")), "output", "cannot be made")
    for flags in (("--seed", "-1"), ("--devices", "0")):
        done = fedmq("demo", *flags)
        assert done.returncode == 2
        assert flags[0] in done.stderr
        assert "Traceback" not in done.stderr


def test_a_lab_broker_that_cannot_begin_says_why() -> None:
    for flags in (("--port", "65536"), ("--max-packet", "0"), ("--max-inflight", "65536")):
        done = fedmq("lab-broker", *flags)
        assert done.returncode == 2
        assert flags[0] in done.stderr
        assert "Traceback" not in done.stderr


def test_a_broker_that_is_not_there_is_told_once() -> None:
    port = str(servers.free_port())
    with subprocess.Popen(
        [sys.executable, "-m", "fedmq.cli", "tail", "--mqtt-port", port],
        stderr=subprocess.PIPE,
        text=True,
    ) as tail:
        assert tail.stderr
        assert "link_ended" in tail.stderr.readline()
        tail.terminate()
        assert tail.wait(30) == 0


def test_files_of_another_kind_are_one_line_that_names_the_field(
    spec: Path, tmp_path: Path
) -> None:
    binary, array, words = (tmp_path / name for name in ("binary", "a.npy", "words"))
    binary.write_bytes(b"\xff\xfe\x00")
    np.save(array, np.ones(3))
    words.write_text("no numbers")
    refused(fedmq("task", "create", "x", "--spec", str(binary)), "spec", "cannot be read")
    refused(fedmq("bridge", "--config", str(binary)), "config", "cannot be read")
    for init in (array, words):
        done = fedmq("task", "create", "x", "--spec", str(spec), "--init", str(init))
        refused(done, "init", init.name, "numpy.savez")


def test_an_initial_model_that_nothing_can_be_trained_from_is_refused(
    redis_url: str, spec: Path, tmp_path: Path
) -> None:
    path = tmp_path / "nan.npz"
    np.savez(path, w=np.full((3, 2), np.nan, np.float32))
    flags = ("--spec", str(spec), "--init", str(path), "--redis", redis_url)
    refused(fedmq("task", "create", "nan", *flags), "init", "NaN")
    refused(fedmq("task", "show", "nan", "--redis", redis_url), "does not exist")


def test_help_keeps_the_names_of_tables_and_the_version_is_told() -> None:
    assert "Table [bridge]" in fedmq("bridge", "--help").stdout
    assert "[[params.tensors]]" in fedmq("task", "create", "--help").stdout
    assert fedmq("--version").stdout.startswith("fedmq 0.")


def test_an_npz_of_python_objects_is_never_unpickled(spec: Path, tmp_path: Path) -> None:
    path = tmp_path / "objects.npz"
    np.savez(path, w=np.array([{"a": 1}], dtype=object))
    refused(fedmq("task", "create", "x", "--spec", str(spec), "--init", str(path)), "init")


def test_a_password_on_the_command_line_is_refused_and_not_repeated() -> None:
    done = fedmq("task", "show", "x", "--redis", "redis://:s3cret@127.0.0.1:1/0")
    refused(done, "redis_url", "FEDMQ_REDIS_URL")
    assert "s3cret" not in done.stdout + done.stderr


def test_a_redis_that_does_not_answer_is_one_line_without_its_password(spec: Path) -> None:
    url = f"redis://:s3cret@{servers.HOST}:{servers.free_port()}/0"
    done = fedmq("task", "show", "x", env={"FEDMQ_REDIS_URL": url})
    refused(done, "redis", "is it running?", code=1)
    assert "s3cret" not in done.stderr


def test_a_task_that_does_not_exist_is_named(redis_url: str, tmp_path: Path) -> None:
    refused(fedmq("task", "show", "nobody", "--redis", redis_url), "task", "nobody")
    output = tmp_path / "model.npz"
    pulled = fedmq("model", "pull", "nobody", "-o", str(output), "--redis", redis_url)
    refused(pulled, "task", "nobody")
    assert not output.exists()
