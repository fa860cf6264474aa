"""Predictions of the newest model, on a real mosquitto."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
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
from schemas.conditions import Conditions
from schemas.errors import ConfigError
from schemas.inputs import InputOptions
from schemas.params import unflatten
from schemas.task import TrainOptions
from tests.edge_agent.onnx.house import SENSORS, House, eventually, house

pytest.importorskip("onnxruntime", reason="needs the extra [onnx-runtime]")

BUNDLE = onnx_bundles.softmax_bundle()
NAMED = InputOptions(features=("a", "b", "c", "d"), label="fault")
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
        await server.publish_task(input=NAMED, phase="finished")
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


async def test_that_it_only_serves_is_said_once_and_as_no_problem(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    """Conditions that change from look to look are those of training, and not told."""
    (tmp_path / "told.py").write_text(
        "heat = iter(range(20, 10_000))\ndef provide(): return {'temperature_c': float(next(heat))}"
    )
    (tmp_path / "fedmq.toml").write_text(
        '[agent]\nprovider = "told:provide"\nconditions_every_s = 0.05\n'
    )
    asked = TrainOptions(when=Conditions(cooler_than_c=10))
    async with house(mosquitto) as server:
        await server.publish_task(input=NAMED, train=asked)
        await server.publish_model(1, saying(2))
        with serving(mosquitto, tmp_path, "--config", "fedmq.toml"):
            await first_of(server, 1)
            await server.publish_model(2, saying(1))
            await first_of(server, 2)
            await asyncio.sleep(0.3)
    told = [line for line in (tmp_path / "log").read_text().splitlines() if "not_training" in line]
    assert len(told) == 1
    assert told[0].endswith("INFO not_training: this device only serves")


async def test_other_inputs_are_served_without_a_new_model(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    """What `fedmq task update --set input...` does to a device that serves."""
    reading = {"a": 0, "b": 1, "c": 2, "d": 3, "fault": 0}
    params = np.zeros(SIZE, np.float32)
    params[:3] = [0, 5, 0]  # x[0] speaks for class 1
    async with house(mosquitto) as server:
        await server.publish_task(input=NAMED)
        await server.publish_model(1, params)
        with serving(mosquitto, tmp_path):
            assert (await first_of(server, 1))["version"] == 1
            other = InputOptions(features=("d", "c", "b", "a"), label="fault")
            await server.publish_task(input=other)

            while server.told(PREDICTIONS)[-1]["scores"][1] < 0.99:  # x[0] is 3 now, and was 0
                await server.send(reading)
                await asyncio.sleep(0.05)


async def test_predictions_may_go_elsewhere(mosquitto: servers.Server, tmp_path: Path) -> None:
    async with house(mosquitto) as server:
        await server.publish_task(input=NAMED)
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
    made.take_bundle(BUNDLE, InputOptions(**{"features": ("a", "b", "c", "d")} | given))
    return made


def model(version: int, params: np.ndarray) -> GlobalModel:
    return GlobalModel(1, version, unflatten(BUNDLE.manifest.params, params))


def read(serving_: Serving, *rows: list[float]) -> None:
    for row in rows:
        serving_.take(dict(zip("abcd", row, strict=True)))


def waiting(serving_: Serving) -> list[np.ndarray]:
    found = []
    while not serving_._waiting.empty():
        found.append(serving_._waiting.get_nowait()[1])
    return found


def serve_now(serving_: Serving, model_: GlobalModel) -> None:
    serving_._newest = model_
    serving_._begin(model_)


def told_of(serving_: Serving, window: np.ndarray) -> dict[str, Any] | None:
    assert serving_._taken is not None
    return serving_._told(serving_._taken, window)


def test_the_answer_is_that_of_the_models_own_parameters(tmp_path: Path) -> None:
    made = ready(tmp_path)
    params = np.random.default_rng(0).normal(size=SIZE).astype(np.float32)
    serve_now(made, model(3, params))
    read(made, [1, 2, 3, 4])
    (window,) = waiting(made)
    told = told_of(made, window)
    assert told is not None
    scores = np.array([1, 2, 3, 4], np.float32) @ params[:12].reshape(4, 3) + params[12:]
    odds = np.exp(scores - scores.max())
    assert told["scores"] == pytest.approx((odds / odds.sum()).tolist(), rel=1e-4)
    assert (told["version"], told["label"]) == (3, int(scores.argmax()))


def test_a_scale_is_measured_before_the_first_prediction_or_is_the_trainings(
    tmp_path: Path,
) -> None:
    made = ready(tmp_path, normalise="device")
    serve_now(made, model(1, saying(1)))
    rows = [[float(n), 1, 1, 1] for n in range(40)]
    for row in rows:
        read(made, row)
    told = [told_of(made, window) for window in waiting(made)]
    assert told[:31] == [None] * 31
    assert None not in told[31:]
    kept = msgspec.json.decode((tmp_path / "scale.json").read_bytes())
    assert kept["mean"][0] == 15.5
    again = ready(tmp_path, normalise="device")
    serve_now(again, model(1, saying(1)))
    read(again, rows[0])
    assert told_of(again, waiting(again)[0]) is not None


def test_readings_that_come_too_fast_pass_the_oldest_over(tmp_path: Path) -> None:
    made = ready(tmp_path)
    serve_now(made, model(1, saying(1)))
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
    sessions: list[Served] = [made._ready(model(v, saying(v % 3)), made._taken) for v in range(3)]
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


class Models:
    """Stands for an agent that has these models, and gets more."""

    def __init__(self, *models: GlobalModel) -> None:
        self.queue: asyncio.Queue[GlobalModel] = asyncio.Queue()
        for each in models:
            self.queue.put_nowait(each)

    async def models(self) -> AsyncIterator[GlobalModel]:
        while True:
            yield await self.queue.get()


async def test_the_model_that_is_here_is_served_on_when_the_task_has_other_inputs(
    tmp_path: Path,
) -> None:
    made = Serving("a", "b", scale_file=tmp_path / "scale.json", threads=1)
    following = asyncio.create_task(made.follow(Models(model(1, saying(2)))))  # type: ignore[arg-type] # what follow uses of an agent
    await eventually(lambda: made._newest is not None)
    assert made.served is None, "no bundle is here"
    made.take_bundle(BUNDLE, NAMED)
    assert made.served == (1, 1)
    read(made, [1, 2, 3, 4])
    first = made._taken
    made.take_bundle(BUNDLE, InputOptions(features=("d", "c", "b", "a")))
    assert made.served == (1, 1)
    read(made, [1, 2, 3, 4])
    (before, _), (after, window) = made._waiting.get_nowait(), made._waiting.get_nowait()
    assert before is first
    assert made._told(before, window) is None, "it was made for other inputs"
    assert made._told(after, window) is not None
    assert window.tolist() == [[4, 3, 2, 1]]
    following.cancel()


def test_a_model_that_was_begun_with_another_bundle_is_not_served(tmp_path: Path) -> None:
    made = ready(tmp_path)
    made._newest = model(1, saying(0))
    real = made._ready

    def overtaken(new: GlobalModel, taken: Any) -> Served:
        made._ready = real  # type: ignore[method-assign] # once
        made.take_bundle(BUNDLE, InputOptions(features=("d", "c", "b", "a")))
        return real(new, taken)

    made._ready = overtaken  # type: ignore[method-assign] # once
    made._begin(made._newest)
    assert made._served is not None
    assert made._served.taken is made._taken


async def test_a_model_that_cannot_be_served_is_told_and_the_next_one_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, agent = ready(tmp_path), Models(model(1, saying(0)), model(2, saying(0)))
    real = made._ready

    def choking(new: GlobalModel, taken: Any) -> Served:
        if new.version == 1:
            raise IndexError("no such axis")
        return real(new, taken)

    monkeypatch.setattr(made, "_ready", choking)
    following = asyncio.create_task(made.follow(agent))  # type: ignore[arg-type] # as above
    await eventually(lambda: made.served == (1, 2))
    assert "not_served version=1 error=no such axis" in caplog.text
    following.cancel()


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
