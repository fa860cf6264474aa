"""A device with data and nothing else, on a real mosquitto."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_bundles
import pytest
import servers

from edge_agent.__main__ import _beside, _trainer
from edge_agent.agent import Agent
from edge_agent.onnx.bundled import BundleTrainer
from edge_agent.settings import AgentSettings
from schemas.conditions import Conditions
from schemas.errors import ConfigError
from schemas.inputs import InputOptions
from schemas.task import TrainOptions
from tests.edge_agent.onnx.house import DEVICE, SENSORS, eventually, house

pytest.importorskip("onnxruntime", reason="needs the extra [onnx-runtime]")

SIZE = onnx_bundles.softmax_params(4, 3).size
ZEROS = np.zeros(SIZE, np.float32)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.mosquitto(tmp_path) as server:
        yield server


def settings_for(broker: servers.Server, where: Path, **more: Any) -> AgentSettings:
    return AgentSettings(
        mqtt_port=broker.port,
        mqtt_connect_timeout_s=5,
        device=DEVICE,
        task="pumps",
        state_dir=str(where / "state"),
        silence_s=1,
        reconnect_s=0.2,
        conditions_every_s=0.1,
        seed=1,
        **more,
    )


@asynccontextmanager
async def running(settings: AgentSettings) -> AsyncIterator[tuple[Agent, BundleTrainer]]:
    trainer = _trainer(settings)
    assert isinstance(trainer, BundleTrainer)
    agent = Agent(settings, trainer)
    task = asyncio.create_task(_beside(settings, agent, trainer))
    try:
        yield agent, trainer
        assert not task.done(), "an agent never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        agent._spool.close()


def table(where: Path, rows: int = 40) -> Path:
    rng = np.random.default_rng(1)
    lines = ["a,b,c,d,fault"]
    for number in range(rows):
        x = rng.normal(size=4) + 3 * np.eye(4)[number % 3]
        lines.append(",".join(f"{v:.3f}" for v in x) + f",{number % 3}")
    file = where / "pump.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


async def test_a_csv_and_a_label_are_all_that_a_device_needs(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    settings = settings_for(
        mosquitto, tmp_path, data=str(table(tmp_path)), label="fault", holdout=0.2
    )
    async with house(mosquitto) as server:
        await server.publish_task(train=TrainOptions(epochs=5), input=InputOptions())
        await server.publish_model(1, ZEROS)
        async with running(settings):
            update = await server.update(1)
    assert update.num_examples == 32
    assert update.metrics["loss_before"] == pytest.approx(np.log(3))
    assert update.metrics["loss_after"] < 0.8
    assert update.metrics["accuracy"] > 0.8
    assert update.metrics["@"] == 8
    assert update.metrics["@loss"] == pytest.approx(np.log(3))


async def test_data_that_cannot_be_read_is_told_and_looked_at_again(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    file = table(tmp_path)
    good = file.read_text()
    file.write_text(good + "1,2,3,,0\n")
    settings = settings_for(mosquitto, tmp_path, data=str(file), label="fault")
    async with house(mosquitto) as server:
        await server.publish_task()
        await server.publish_model(1, ZEROS)
        async with running(settings) as (agent, _):
            await eventually(lambda: "pump.csv line 42, column 'd'" in agent.resting)
            file.write_text(good)
            await server.update(1)


async def test_a_live_topic_is_trained_on_when_enough_has_come_and_predicted_of(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    given = InputOptions(features=("a", "b"), label="fault", window=2, normalise="device")
    asked = TrainOptions(epochs=3, when=Conditions(new_samples=50))
    settings = settings_for(mosquitto, tmp_path, data=f"mqtt:{SENSORS}", predict=True)
    async with house(mosquitto) as server:
        await server.publish_task(train=asked, input=given)
        await server.publish_model(1, ZEROS)
        async with running(settings) as (agent, trainer):
            await eventually(lambda: f"mqtt:{SENSORS} has given 0 of 32 samples" in agent.resting)
            serving = trainer.serving
            assert serving is not None
            await eventually(lambda: serving.served == (1, 1))
            for number in range(35):
                await server.send({"a": number % 3, "b": 1.0, "fault": number % 3})
            await eventually(lambda: "34 new samples, must be 50" in agent.resting)
            for number in range(35, 55):
                await server.send({"a": number % 3, "b": 1.0, "fault": number % 3})
            update = await server.update(1)
            assert update.num_examples >= 50
            told = server.told(f"{SENSORS}/prediction")
            assert told
            assert (told[0]["version"], told[0]["epoch"]) == (1, 1)
            assert told[0]["scores"] == pytest.approx([1 / 3] * 3, abs=1e-5)


async def test_data_is_read_again_when_the_task_asks_for_other_inputs(
    mosquitto: servers.Server, tmp_path: Path
) -> None:
    settings = settings_for(mosquitto, tmp_path, data=str(table(tmp_path)), label="fault")
    async with house(mosquitto) as server:
        await server.publish_task()
        await server.publish_model(1, ZEROS)
        async with running(settings) as (_, trainer):
            await server.update(1)
            first = trainer._trainer
            await server.publish_task(input=InputOptions(features=("d", "c", "b", "a")))
            await eventually(lambda: trainer._trainer is not first)


def test_the_task_needs_data_or_a_trainer_but_not_both() -> None:
    def refused(**more: Any) -> str:
        with pytest.raises(ConfigError) as told:
            _trainer(AgentSettings(device="d", task="t", **more))
        return told.value.field

    assert refused() == "trainer"
    assert refused(data="nowhere.csv") == "data"
    assert refused(trainer="a:B", data="x.csv") == "data"
    assert refused(trainer="a:B", predict=True) == "predict"
    assert refused(data="module:function", predict=True) == "predict"
    assert refused(data="module:function", options={"a": 1}) == "option"
    assert refused(data="mqtt:plant/#") == "data"
    assert refused(data="mqtt:a", predict=True, publish="a") == "publish"


def test_without_onnxruntime_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    settings = AgentSettings(
        device="d", task="t", data=str(table(tmp_path)), label="fault", state_dir=str(tmp_path)
    )
    with pytest.raises(ConfigError, match=r"bundle: .*fedmq\[onnx-runtime\]"):
        BundleTrainer(settings).take_bundle(onnx_bundles.softmax_bundle(), InputOptions())
