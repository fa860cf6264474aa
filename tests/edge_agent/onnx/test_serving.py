"""Predictions of the newest model, on a real mosquitto."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_bundles
import pytest
import servers

from edge_agent.agent import GlobalModel
from edge_agent.onnx.serving import WAITING_MAX, OnlyServing, Served, Serving, said
from schemas.errors import ConfigError
from schemas.inputs import InputOptions
from schemas.params import unflatten
from tests.edge_agent.onnx.house import SENSORS, House, eventually, house

pytest.importorskip("onnxruntime", reason="needs the extra [onnx-runtime]")

BUNDLE = onnx_bundles.softmax_bundle()
SIZE = BUNDLE.manifest.params.size
PREDICTIONS = f"{SENSORS}/prediction"


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.mosquitto(tmp_path) as server:
        yield server


def saying(label: int) -> np.ndarray:
    """A model that says one class, whatever it sees."""
    params = np.zeros(SIZE, np.float32)
    params[12 + label] = 9
    return params


@contextmanager
def serving(broker: servers.Server, where: Path, *more: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-m", "fedmq.cli", "serve", "--task", "pumps"]
    command += ["--device", "pump-7-serve", "--mqtt-port", str(broker.port)]
    command += ["--data", f"mqtt:{SENSORS}", "--state-dir", str(where / "state"), *more]
    environ = {n: t for n, t in os.environ.items() if not n.startswith("FEDMQ_")}
    with (where / "log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=where, env=environ | {"PYTHONPATH": str(servers.ROOT)}, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(15)


async def first_of(server: House, version: int, topic: str = PREDICTIONS) -> dict[str, Any]:
    """Send readings until a model's prediction comes."""
    while True:
        await server.send({"a": 1, "b": 2, "c": 3, "d": 4, "fault": 0})
        await asyncio.sleep(0.1)
        for told in server.told(topic):
            if told["version"] == version:
                return told


async def test_fedmq_serve_publishes_what_the_newest_model_says(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    async with house(mosquitto) as server:
        await server.publish_task(input=InputOptions(label="fault"), phase="finished")
        await server.publish_model(1, saying(2))
        with serving(mosquitto, tmp_path) as process:
            told = await first_of(server, 1)
            assert set(told) == {"version", "epoch", "label", "scores"}
            assert (told["epoch"], told["label"]) == (1, 2)
            assert sum(told["scores"]) == pytest.approx(1, abs=1e-4)
            await server.publish_model(2, saying(0))
            assert (await first_of(server, 2))["label"] == 0
            await server.send("garbage", {"a": 1})
            assert (await first_of(server, 2))["label"] == 0
            assert process.poll() is None
        assert process.returncode == 0
        labels = {told["version"]: told["label"] for told in server.told(PREDICTIONS)}
        assert labels == {1: 2, 2: 0}
        assert not any("/up/" in topic for topic, _ in server.heard), "it never trains"


async def test_predictions_may_go_elsewhere(mosquitto: servers.Server, tmp_path: Path) -> None:
    async with house(mosquitto) as server:
        await server.publish_task()
        await server.publish_model(1, saying(1))
        more = ("--publish", "alarms", "--label", "fault")
        with serving(mosquitto, tmp_path, *more):
            assert (await first_of(server, 1, "alarms"))["label"] == 1


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--data", "pump.csv"), "data: must be mqtt:TOPIC"),
        (("--data", "mqtt:plant/+"), "data: 'plant/+' stands for several topics"),
        (("--data", "mqtt:a", "--publish", "a"), "publish: predictions must not go"),
        (("--data", "mqtt:a", "--publish", "a/#"), "publish: 'a/#' stands for several"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_one_line(
    tmp_path: Path, more: tuple[str, ...], told: str
) -> None:
    command = [sys.executable, "-m", "fedmq.cli", "serve", "--task", "t", "--device", "d", *more]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert told in done.stderr


# -- without a broker ----------------------------------------------------------------------------


def ready(where: Path, **given: Any) -> Serving:
    made = Serving("a", "b", scale_file=where / "scale.json", threads=1)
    made.take_bundle(BUNDLE, InputOptions(**given))
    return made


def model(version: int, params: np.ndarray) -> GlobalModel:
    return GlobalModel(1, version, unflatten(BUNDLE.manifest.params, params))


def read(serving_: Serving, *rows: list[float]) -> None:
    for row in rows:
        serving_.take(dict(zip("abcd", row, strict=True)))


def waiting(serving_: Serving) -> list[np.ndarray]:
    found = []
    while not serving_._waiting.empty():
        found.append(serving_._waiting.get_nowait())
    return found


def test_the_answer_is_that_of_the_models_own_parameters(tmp_path: Path) -> None:
    made = ready(tmp_path)
    params = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    made._served = made._ready(model(3, params))
    read(made, [1, 2, 3, 4])
    (window,) = waiting(made)
    told = made._told(window)
    assert told is not None
    scores = np.array([1, 2, 3, 4], np.float32) @ params[:12].reshape(4, 3) + params[12:]
    odds = np.exp(scores - scores.max())
    assert told["scores"] == pytest.approx((odds / odds.sum()).tolist(), rel=1e-4)
    assert (told["version"], told["label"]) == (3, int(scores.argmax()))


def test_a_scale_is_measured_before_the_first_prediction_or_is_the_trainings(
    tmp_path: Path,
) -> None:
    made = ready(tmp_path, normalise="device")
    made._served = made._ready(model(1, saying(1)))
    rows = [[float(n), 1, 1, 1] for n in range(40)]
    for row in rows:
        read(made, row)
    told = [made._told(window) for window in waiting(made)]
    assert told[:31] == [None] * 31
    assert None not in told[31:]
    kept = msgspec.json.decode((tmp_path / "scale.json").read_bytes())
    assert kept["mean"][0] == 15.5
    again = ready(tmp_path, normalise="device")
    again._served = again._ready(model(1, saying(1)))
    read(again, rows[0])
    assert again._told(waiting(again)[0]) is not None


def test_readings_that_come_too_fast_pass_the_oldest_over(tmp_path: Path) -> None:
    made = ready(tmp_path)
    made._served = made._ready(model(1, saying(1)))
    for number in range(WAITING_MAX + 5):
        read(made, [number, 0, 0, 0])
    assert made.passed_over == 5
    assert waiting(made)[0][0, 0] == 5


def test_before_a_model_is_here_nothing_is_kept(tmp_path: Path) -> None:
    made = ready(tmp_path)
    read(made, [1, 2, 3, 4])
    assert waiting(made) == []
    assert made.served is None


async def test_a_model_that_is_being_replaced_answers_whole(tmp_path: Path) -> None:
    made = ready(tmp_path)
    sessions: list[Served] = [made._ready(model(v, saying(v % 3))) for v in range(3)]
    made._served = sessions[0]
    published: list[dict[str, Any]] = []

    async def publish(_topic: str, payload: bytes) -> bool:
        made._served = sessions[(len(published) + 1) % 3]
        published.append(msgspec.json.decode(payload))
        return True

    running = asyncio.create_task(made.run(publish))
    for number in range(30):
        read(made, [number, 0, 0, 0])
    await eventually(lambda: len(published) == 30)
    running.cancel()
    assert all(told["label"] == told["version"] % 3 for told in published)


def test_numbers_and_yes_or_no_are_told_as_such() -> None:
    line = onnx_bundles.line_bundle().manifest
    assert said(line, np.array([41.5])) == {"value": 41.5}
    assert said(line, np.array([1.0, 2.0])) == {"value": [1, 2]}
    yes_no = msgspec.structs.replace(line, loss="bce-with-logits")
    assert said(yes_no, np.array([0.5])) == {"label": 1, "scores": [0.622459]}
    assert said(yes_no, np.array([-800.0, 800.0]))["label"] == [0, 1]


def test_a_device_that_only_serves_never_trains(tmp_path: Path) -> None:
    stand_in = OnlyServing(ready(tmp_path))
    assert stand_in.lacks()
    with pytest.raises(ValueError, match="only serves"):
        stand_in.train({}, None, None)


def test_predictions_must_not_feed_themselves(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="publish"):
        Serving("a", "a", scale_file=tmp_path / "s")
