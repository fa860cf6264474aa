"""The agent as a library: beside a user's program, on the user's connection, once in a while."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiomqtt
import msgspec
import numpy as np
import pytest
import servers

from edge_agent.agent import Agent
from edge_agent.exchange import exchange_now
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.trainer import TrainResult
from mqtt_session.borrowed import Borrowed
from schemas.conditions import Conditions
from schemas.errors import ConfigError
from schemas.evaluation import Evaluation
from schemas.messages import Manifest
from schemas.names import in_canary
from schemas.outcomes import Reason
from schemas.params import ParamSpec, TensorSpec, model_digest
from schemas.task import (
    CodecOptions,
    EvaluateOptions,
    GateOptions,
    TaskSpec,
    TrainOptions,
    spec_to_json,
)
from schemas.wire import decode_update, encode_manifest
from tests.edge_agent.played_server import (
    DEVICE,
    SIZE,
    SPEC,
    TOPICS,
    Model,
    ServerSide,
    Tiny,
    device,
    eventually,
    server_side,
    turns,
)


def settings(broker: servers.Server, folder: Path, **given: Any) -> AgentSettings:
    plain = {
        "mqtt_port": broker.port,
        "mqtt_connect_timeout_s": 5,
        "state_dir": str(folder / "state"),
        "resend_s": 0.2,
        "silence_s": 0.5,
        "reconnect_s": 0.2,
        "conditions_every_s": 0.05,
    }
    return AgentSettings(device=DEVICE, task="pumps", trainer="not:used", **(plain | given))


# -- beside a user's program ------------------------------------------------------------------


async def test_every_model_that_is_adopted_is_given(mosquitto, tmp_path) -> None:
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(1))
        async with Agent(settings(mosquitto, tmp_path), Tiny()) as agent:
            models = agent.models()
            first = await anext(models)
            assert (first.epoch, first.version) == (1, 1)
            assert first.tensors["w"].tolist() == [101.0] * SIZE
            assert not first.tensors["w"].flags.writeable
            await server.keep_model(Model(2))
            assert (await anext(models)).version == 2


async def test_what_is_learnt_survives_the_program(mosquitto, tmp_path) -> None:
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(1))
        async with Agent(settings(mosquitto, tmp_path), Tiny()):
            update = await server.update()
    assert not list(tmp_path.glob("state/*-wal")), "the spool is closed"
    spool = Spool(tmp_path / "state" / settings(mosquitto, tmp_path).spool_name)
    assert [each.seq for each in spool.open_updates()] == [update.seq]
    spool.close()


async def test_what_ends_the_agent_reaches_the_program(mosquitto, tmp_path) -> None:
    async with server_side(mosquitto) as server:
        await server.keep_spec(TaskSpec(SPEC.params, train=TrainOptions(joules=5.0)))
        await server.keep_model(Model(1))
        with pytest.raises(ConfigError, match="watts"):
            await _all_models(Agent(settings(mosquitto, tmp_path), Tiny()))


async def _all_models(agent: Agent) -> None:
    async with agent:
        async for _ in agent.models():
            pass


async def test_an_agent_lives_on_the_users_own_connection(mosquitto, tmp_path) -> None:
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(1))
        async with aiomqtt.Client(servers.HOST, mosquitto.port, identifier="mine") as client:
            connection = Borrowed(client)
            mine: list[bytes] = []

            async def loop() -> None:
                async for message in client.messages:
                    mine.extend([bytes(message.payload)] * (not connection.deliver(message)))

            reading = asyncio.create_task(loop())
            await client.subscribe("kettle")
            where = settings(mosquitto, tmp_path, mqtt_port=1)  # nobody listens there
            async with Agent(where, Tiny(), connection=connection) as agent:
                update = await server.update_from(Model(1))
                await server.settle(update)
                await agent.until(lambda: not agent.open_updates)
                await client.publish("kettle", b"boils", qos=1)
                await eventually(lambda: mine == [b"boils"], "the rest stays the user's")
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


# -- once in a while --------------------------------------------------------------------------


async def answering(server: ServerSide) -> None:
    while True:
        await server.settle(await server.update())


async def test_one_exchange_fetches_trains_sends_and_ends(mosquitto, tmp_path) -> None:
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(4))
        answers = asyncio.create_task(answering(server))
        done = await exchange_now(settings(mosquitto, tmp_path), Tiny(), within_s=15)
        assert (done.linked, done.version, done.settled, done.open) == (True, 4, 1, 0)
        again = await exchange_now(settings(mosquitto, tmp_path), Tiny(), within_s=15)
        assert (again.version, again.settled, again.open) == (4, 0, 0)
        assert again.resting
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)


async def test_what_was_not_answered_waits_for_the_next_exchange(mosquitto, tmp_path) -> None:
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        await server.keep_model(Model(4))
        done = await exchange_now(settings(mosquitto, tmp_path), Tiny(), within_s=1.5)
        assert (done.linked, done.settled, done.open) == (True, 0, 1)
        await server.settle(await server.update())
        again = await exchange_now(settings(mosquitto, tmp_path), Tiny(), within_s=15)
        assert (again.settled, again.open) == (1, 0)


async def test_a_broker_that_is_not_there_is_told(tmp_path, mosquitto) -> None:
    nowhere = settings(mosquitto, tmp_path, mqtt_port=servers.free_port())
    done = await exchange_now(nowhere, Tiny(), within_s=0.5)
    assert (done.linked, done.version, done.open) == (False, None, 0)


# -- phases, conditions, figures --------------------------------------------------------------


async def test_a_paused_task_lets_the_device_rest(mosquitto, tmp_path, heard) -> None:
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        await server.keep_spec(TaskSpec(SPEC.params, codec=SPEC.codec, phase="paused"))
        await server.keep_model(Model(1))
        await eventually(lambda: there.agent.version == 1, "it adopts all the same")
        await eventually(lambda: there.agent.resting == "the task is paused", "it rests")
        await turns(server, heard)
        assert there.created == []
        await server.keep_spec()
        assert (await server.update()).base_version == 1


async def test_a_device_trains_when_its_conditions_hold(mosquitto, tmp_path) -> None:
    now = {"charging": False}

    def unmet(asked: Conditions) -> list[str]:
        return ["not charging"] if asked.charging and not now["charging"] else []

    asked = TrainOptions(when=Conditions(charging=True))
    async with server_side(mosquitto) as server:
        await server.keep_spec(TaskSpec(SPEC.params, codec=SPEC.codec, train=asked))
        await server.keep_model(Model(1))
        async with Agent(settings(mosquitto, tmp_path), Tiny(), unmet=unmet) as agent:
            await agent.until(lambda: agent.resting == "not charging")
            assert agent.created == 0
            now["charging"] = True
            assert (await server.update()).base_version == 1


async def test_conditions_are_looked_at_before_every_round(mosquitto, tmp_path) -> None:
    """Without a link it trains on and on from one model; here the charger goes after two."""
    rounds = Tiny()

    def unmet(asked: Conditions) -> list[str]:
        return ["not charging"] if asked.charging and len(rounds.started_from) == 2 else []

    asked = TrainOptions(rounds_per_base=1000, when=Conditions(charging=True))
    model, spool = Model(1), Spool(tmp_path / "spool.sqlite")
    spec = TaskSpec(SPEC.params, codec=SPEC.codec, train=asked)
    spool.save(
        spec=spec_to_json(spec),
        manifest=encode_manifest(model.manifest),
        params=model.params.tobytes(),
    )
    nowhere = settings(mosquitto, tmp_path, mqtt_port=servers.free_port())
    async with Agent(nowhere, rounds, spool, unmet=unmet) as agent:
        await agent.until(lambda: agent.resting == "this model was trained from")
        assert (len(rounds.started_from), agent.created) == (2, 2)


async def test_a_banned_device_rests_until_its_receipt_is_cleared(
    mosquitto, tmp_path, heard
) -> None:
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        await server.keep_spec()
        await server.keep_model(Model(1))
        await server.settle(await server.update(), outcome=Reason.BANNED)
        await server.keep_model(Model(2))
        await eventually(lambda: there.agent.version == 2, "it adopts all the same")
        await eventually(lambda: "banned" in there.agent.resting, "it rests")
        await turns(server, heard)
        assert there.created == [1]
        await server.keep(TOPICS.receipt(DEVICE), b"")
        assert (await server.update()).base_version == 2


@dataclass
class Judging(Tiny):
    """A trainer with examples held out."""

    asked: list[float] = field(default_factory=list)

    def evaluate(self, tensors: Mapping[str, Any]) -> Evaluation:
        self.asked.append(float(tensors["w"][0]))
        return Evaluation(40, {"accuracy": 0.75})


@pytest.mark.parametrize("wanted", [True, False])
async def test_a_device_tells_how_good_the_global_model_is(mosquitto, tmp_path, wanted) -> None:
    asked = EvaluateOptions(devices=wanted)
    spec = TaskSpec(SPEC.params, codec=SPEC.codec, evaluate=asked)
    trainer = Judging()
    async with (
        server_side(mosquitto) as server,
        device(mosquitto, tmp_path, trainer=trainer),
    ):
        await server.keep_spec(spec)
        await server.keep_model(Model(1))
        update = await server.update()
    told = {"loss": 0.25, "@": 40.0, "@accuracy": 0.75} if wanted else {"loss": 0.25}
    assert dict(update.metrics) == told
    assert trainer.asked == ([101.0] if wanted else [])


@dataclass
class Talkative(Judging):
    """It also tells as many metrics as an update may carry."""

    def train(self, tensors: Mapping[str, Any], options: object, rng: Any) -> TrainResult:
        done = super().train(tensors, options, rng)
        return replace(done, metrics={f"m{n}": float(n) for n in range(16)})


async def test_figures_of_the_base_are_taken_once_and_have_room_in_the_update(
    mosquitto, tmp_path
) -> None:
    """Offline it trains two rounds: the second begins from its own model, not from the base."""
    asked = TrainOptions(rounds_per_base=2)
    model, spool, trainer = Model(1), Spool(tmp_path / "spool.sqlite"), Talkative()
    spool.save(
        spec=spec_to_json(TaskSpec(SPEC.params, codec=SPEC.codec, train=asked)),
        manifest=encode_manifest(model.manifest),
        params=model.params.tobytes(),
    )
    nowhere = settings(mosquitto, tmp_path, mqtt_port=servers.free_port())
    async with Agent(nowhere, trainer, spool) as agent:
        await agent.until(lambda: agent.created == 2)
        (left,) = spool.open_updates()
        update = decode_update(left.message)
    assert trainer.asked == [101.0]
    assert len(update.metrics) == 16
    assert update.metrics["@accuracy"] == 0.75


# -- pins and canaries ------------------------------------------------------------------------


async def test_a_pinned_device_goes_back_and_is_let_go_again(mosquitto, tmp_path) -> None:
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        await server.keep_spec()
        await server.keep_model(Model(9))
        await eventually(lambda: there.agent.version == 9, "it adopts the newest")
        await server.keep_chunks(Model(5).chunks)
        await server.keep(TOPICS.pin(DEVICE), encode_manifest(Model(5).manifest))
        await eventually(lambda: there.agent.version == 5, "it goes back")
        await server.keep_model(Model(10))
        assert (await server.update_from(Model(5))).base_version == 5
        await server.keep(TOPICS.pin(DEVICE), b"")
        await eventually(lambda: there.agent.version == 10, "it follows the others again")


async def test_a_canary_gets_the_candidate_and_may_be_taken_back(mosquitto, tmp_path) -> None:
    assert in_canary(DEVICE, 1.0)
    spec = TaskSpec(SPEC.params, codec=SPEC.codec, gate=GateOptions(canary=1.0))
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        await server.keep_chunks([*Model(3).chunks, *Model(4).chunks])
        await server.keep_manifest(Model(3).manifest)
        await server.keep(TOPICS.candidate, encode_manifest(Model(4).manifest))
        await server.keep_spec(spec)
        await eventually(lambda: there.agent.version == 4, "it gets the new version first")
        await server.keep(TOPICS.candidate, encode_manifest(Model(3).manifest))
        await eventually(lambda: there.agent.version == 3, "it was not good enough")


async def test_everybody_else_leaves_the_candidate_alone(mosquitto, tmp_path, heard) -> None:
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        await server.keep_chunks(Model(4).chunks)
        await server.keep(TOPICS.candidate, encode_manifest(Model(4).manifest))
        await server.keep_spec()
        await server.keep_model(Model(3))
        await eventually(lambda: there.agent.version == 3, "it adopts everybody's")
        await turns(server, heard)
        assert there.agent.version == 3


# -- tensors of every kind --------------------------------------------------------------------

KINDS = ParamSpec(
    (
        TensorSpec("w", (SIZE - 6,)),
        TensorSpec("mean", (2,), "buffer"),
        TensorSpec("stem", (2,), "frozen"),
        TensorSpec("head", (2,), "local"),
    )
)


@dataclass
class Adding:
    """Adds one to everything, in another dtype, and keeps what it was given."""

    given: list[dict[str, list[float]]] = field(default_factory=list)

    def train(
        self, tensors: Mapping[str, Any], _options: object, _rng: np.random.Generator
    ) -> TrainResult:
        self.given.append({name: tensor.tolist() for name, tensor in tensors.items()})
        added = {name: tensor.astype(np.float64) + 1 for name, tensor in tensors.items()}
        return TrainResult(added, num_examples=5)


async def test_only_what_is_trained_travels_and_local_tensors_stay(mosquitto, tmp_path) -> None:
    def published(version: int) -> Manifest:
        model = Model(version)
        digest = model_digest(KINDS.digest, model.params)
        return replace(model.manifest, spec_digest=KINDS.digest, model_digest=digest)

    spec = TaskSpec(KINDS, codec=CodecOptions(name="float32"))
    trainer = Adding()
    where = settings(mosquitto, tmp_path)
    async with server_side(mosquitto) as server, Agent(where, trainer) as agent:
        await server.keep_spec(spec)
        await server.keep_chunks(Model(1).chunks)
        await server.keep_manifest(published(1))
        update = await server.update()
        assert np.frombuffer(bytes(update.payload), "<f4").tolist() == [1.0] * (SIZE - 4)
        await server.settle(update)
        await agent.until(lambda: not agent.open_updates)
        await server.keep_chunks(Model(2).chunks)
        await server.keep_manifest(published(2))
        await server.update_from(Model(2))
    assert trainer.given[0]["head"] == [101.0, 101.0]
    assert trainer.given[1]["head"] == [102.0, 102.0], "its own, from the round before"
    assert trainer.given[1]["stem"] == [102.0, 102.0], "the task's, whatever the trainer did"
    assert trainer.given[1]["mean"] == [102.0, 102.0]


async def test_a_task_that_needs_a_newer_device_is_left_alone(mosquitto, tmp_path, heard) -> None:
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path) as there:
        tables = msgspec.json.decode(spec_to_json(SPEC)) | {"needs": ["teleportation"]}
        await server.keep(TOPICS.spec, msgspec.json.encode(tables))
        await server.keep_model(Model(1))
        await eventually(lambda: heard.count("teleportation") > 0, "it says what is missing")
        assert there.created == []
