"""A real agent against real brokers; the test plays the server."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edge_agent.spool import Spool
from edge_agent.trainer import TrainResult
from schemas.codecs import codec_by_name
from schemas.delta import Sparse, to_dense
from schemas.names import Boot, Seq
from schemas.outcomes import Reason
from schemas.params import base_digest
from schemas.task import TaskSpec, TrainOptions, spec_to_json
from schemas.window import SPAN
from schemas.wire import encode_manifest
from tests.edge_agent.played_server import (
    CHUNKS,
    DEVICE,
    SIZE,
    SPEC,
    TOPICS,
    Model,
    Tiny,
    device,
    eventually,
    server_side,
    turns,
)

# -- the way of one update --------------------------------------------------------------------


async def test_a_device_adopts_a_model_and_sends_what_it_learnt(broker, tmp_path) -> None:
    model = Model(3)
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_model(model)
        update = await server.update()
        residual = there.spool.load("residual")
    assert (update.epoch, update.boot, update.seq, update.base_version) == (1, 77, 1, 3)
    assert update.base_digest == base_digest(model.manifest.model_digest)
    assert update.spec_digest == SPEC.params.short_digest
    assert (update.num_examples, dict(update.metrics)) == (5, {"loss": 0.25})
    codec = codec_by_name("topk_int8")
    assert update.codec == codec.codec_id
    assert residual is not None
    left = np.frombuffer(residual, dtype="<f4")
    learnt = to_dense(codec.decode(memoryview(bytes(update.payload)), SIZE), SIZE) + left
    trained = model.params + np.linspace(0.5, 1, SIZE, dtype=np.float32)
    np.testing.assert_allclose(learnt, trained - model.params, rtol=1e-6)


async def test_an_update_is_sent_again_until_its_receipt_comes(broker, tmp_path) -> None:
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_model(Model(1))
        first, second, third = [await server.update() for _ in range(3)]
        assert first == second == third
        await server.settle(third)
        await eventually(lambda: not there.spool.open_updates(), "the update is settled")
        await server.keep_model(Model(2))
        after = [await server.update_from(Model(2)) for _ in range(3)]
        assert {update.seq for update in after} == {2}


async def test_a_settled_update_is_never_sent_again(broker, tmp_path) -> None:
    async with server_side(broker) as server:
        async with device(broker, tmp_path) as there:
            await server.keep_spec()
            await server.keep_model(Model(1))
            await server.settle(await server.update())
            await eventually(lambda: not there.spool.open_updates(), "the update is settled")
        while not server._inbox.empty():  # what was on its way already
            server._inbox.get_nowait()
        async with device(broker, tmp_path):
            await server.keep_model(Model(2))
            update = await server.update()
            assert (update.boot, update.seq, update.base_version) == (78, 1, 2)


async def test_a_refusal_settles_an_update_too(broker, tmp_path, heard) -> None:
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_model(Model(1))
        await server.settle(await server.update(), Reason.TOO_STALE)
        await eventually(lambda: not there.spool.open_updates(), "the update is settled")
    assert heard.count("update_rejected seq=1 reason=too_stale") >= 1


async def test_a_receipt_for_another_boot_settles_nothing(broker, tmp_path) -> None:
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_model(Model(1))
        update = await server.update()
        await server.settle(update, boot=78)
        await server.keep_model(Model(2))  # comes after the receipt, on the same connection
        await server.update_from(Model(2))
        assert [each.seq for each in there.spool.open_updates()] == [1, 2]


async def test_updates_of_two_lives_are_settled_by_receipts_of_their_own(broker, tmp_path) -> None:
    """A retained receipt speaks of one boot; the other update is answered when it is sent again."""
    async with server_side(broker) as server:
        async with device(broker, tmp_path) as there:
            await server.keep_spec()
            await server.keep_model(Model(1))
            first = await server.update()
        async with device(broker, tmp_path) as there:
            await server.keep_model(Model(2))
            second = await server.update_from(Model(2))
            assert [(u.boot, u.seq) for u in (first, second)] == [(77, 1), (78, 1)]
        await server.settle(second)
        async with device(broker, tmp_path) as there:  # it makes nothing itself
            await eventually(lambda: len(there.spool.open_updates()) == 1, "one is settled")
            again = await server.update_from(Model(1))
            while again != first:
                again = await server.update_from(Model(1))
            await server.settle(again)
            await eventually(lambda: not there.spool.open_updates(), "both are settled")


async def test_training_on_one_base_stops_at_the_window_of_an_older_update(
    broker, tmp_path, heard
) -> None:
    """Else the server's window would slide past a number that it never saw, and call it folded."""
    spec = TaskSpec(SPEC.params, codec=SPEC.codec, train=TrainOptions(rounds_per_base=200))
    async with device(broker, tmp_path) as there:
        async with server_side(broker) as server:
            await server.keep_spec(spec)
            await server.keep_model(Model(1))
            await server.update()
        broker.stop()
        await eventually(lambda: not there.agent.online, "the device notices")
        raw = Model(2).params.tobytes()
        there.spool.save(manifest=encode_manifest(Model(2).manifest), params=raw)
        await there.agent._reload()
        await eventually(lambda: there.agent.resting != "", "it rests")
        found = [each.seq for each in there.spool.open_updates()]
        assert found == [1, SPAN]
        assert there.created == list(range(1, SPAN + 1))


async def test_receipts_out_of_order_settle_by_their_bits(broker, tmp_path) -> None:
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        for version in (1, 2):
            await server.keep_model(Model(version))
            update = await server.update_from(Model(version))
        await server.settle(update, low=0, settled=0b10)
        await eventually(lambda: len(there.spool.open_updates()) == 1, "the second is settled")
        assert [each.seq for each in there.spool.open_updates()] == [1]


# -- models -----------------------------------------------------------------------------------


async def test_an_older_manifest_is_ignored(broker, tmp_path, heard, asked) -> None:
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_model(Model(5, epoch=2))
        await server.update_from(Model(5, epoch=2))
        for older in (Model(4, epoch=2), Model(9, epoch=1)):
            await server.keep_model(older)
            await turns(server, heard)
            assert not any(f"/{older.blob}/" in topic for topic in asked)
        await server.keep_model(Model(0, epoch=3))  # a new epoch begins at version 0
        await server.update_from(Model(0, epoch=3))
        assert there.trainer.started_from == [205, 300]


async def test_a_half_received_model_is_resumed_chunk_by_chunk(broker, tmp_path, asked) -> None:
    model = Model(1)
    async with device(broker, tmp_path) as there:
        async with server_side(broker) as server:
            await server.keep_spec()
            await server.keep_chunks(model.chunks[:8] + model.chunks[10:11])
            await server.keep_manifest(model.manifest)
            have = there.spool
            await eventually(lambda: len(have.chunks(model.blob)) == 9, "9 chunks are kept")
        broker.stop()
        await eventually(lambda: not there.agent.online, "the device notices")
        asked.clear()
        broker.start()  # it has forgotten everything
        async with server_side(broker) as server:
            await server.keep_spec()
            await server.keep_chunks([model.chunk(index) for index in (8, 9, 11, 12)])
            await server.keep_manifest(model.manifest)
            await server.update_from(model)
    assert set(asked) == {TOPICS.chunk(model.blob, index) for index in (8, 9, 11, 12)}


async def test_a_half_received_model_survives_a_restart_of_the_device(
    broker, tmp_path, asked
) -> None:
    model = Model(1)
    async with server_side(broker) as server:
        async with device(broker, tmp_path) as there:
            await server.keep_spec()
            await server.keep_chunks(model.chunks[:8])
            await server.keep_manifest(model.manifest)
            have = there.spool
            await eventually(lambda: len(have.chunks(model.blob)) == 8, "8 chunks are kept")
        asked.clear()
        await server.keep_chunks(model.chunks[8:])
        async with device(broker, tmp_path):
            await server.update_from(model)
    assert sorted(asked) == sorted(TOPICS.chunk(model.blob, index) for index in range(8, CHUNKS))


async def test_a_swept_chunk_makes_the_device_read_the_manifest_again(
    broker, tmp_path, heard
) -> None:
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_chunks(Model(1).chunks[:5])
        await server.keep_manifest(Model(1).manifest)
        await eventually(lambda: heard.count("silence blob=k1-1") >= 1, "it waits in vain")
        await server.keep_model(Model(2))
        await server.update_from(Model(2))
        assert there.trainer.started_from == [102]
        assert there.spool.chunks("k1-1") == {}


async def test_a_model_that_two_newer_ones_have_overtaken_is_not_waited_for(
    broker, tmp_path, asked
) -> None:
    async with server_side(broker) as server, device(broker, tmp_path, silence_s=600) as there:
        await server.keep_spec()
        await server.keep_chunks(Model(1).chunks[:5])
        await server.keep_manifest(Model(1).manifest)
        await eventually(lambda: asked.count(TOPICS.chunk("k1-1", 7)) == 1, "it waits")
        await server.keep_manifest(Model(2).manifest)
        await server.keep_model(Model(3))
        await server.update_from(Model(3))
        assert there.trainer.started_from == [103]


async def test_a_model_whose_chunks_come_late_is_adopted(broker, tmp_path, heard) -> None:
    async with server_side(broker) as server, device(broker, tmp_path):
        await server.keep_spec()
        await server.keep_manifest(Model(1).manifest)
        await eventually(lambda: heard.count("silence blob=k1-1") >= 2, "it asks again")
        await server.keep_chunks(Model(1).chunks)
        await server.update_from(Model(1))


async def test_a_blob_with_another_digest_is_never_adopted_nor_fetched_over_and_over(
    broker, tmp_path, heard
) -> None:
    model = Model(1)
    pieces = [*model.chunks[:-1], (model.chunks[-1][0], bytes(len(model.chunks[-1][1])))]
    async with server_side(broker) as server, device(broker, tmp_path, silence_s=600) as there:
        await server.keep_spec()
        await server.keep_chunks(pieces)
        await server.keep_manifest(model.manifest)
        await eventually(lambda: heard.count("model_refused version=1") >= 1, "it is refused")
        await turns(server, heard)
        assert there.spool.load("params") is None
        assert there.spool.load("manifest") is None
        await server.keep_model(Model(2))
        await server.update_from(Model(2))
        assert there.trainer.started_from == [102]
    assert heard.count("model_refused version=1") == 1


async def test_a_chunk_of_another_size_is_not_taken(broker, tmp_path, heard) -> None:
    model = Model(1)
    topic, piece = model.chunk(3)
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_chunks([*model.chunks[:3], (topic, piece + b"more"), *model.chunks[4:]])
        await server.keep_manifest(model.manifest)
        await eventually(lambda: heard.count("silence blob=k1-1") >= 1, "it waits for another")
        assert 3 not in there.spool.chunks(model.blob)
        await server.keep(topic, piece)
        await server.update_from(model)
    assert heard.count("model_refused") == 0


async def test_a_blob_that_is_larger_than_the_model_is_not_fetched(broker, tmp_path, heard) -> None:
    huge = replace(Model(1).manifest, blob_bytes=1 << 31)
    async with server_side(broker) as server, device(broker, tmp_path, silence_s=600) as there:
        await server.keep_spec()
        await server.keep_manifest(huge)
        await eventually(lambda: heard.count("above=800") == 1, "it is refused")
        await server.keep_model(Model(2))
        await server.update_from(Model(2))
        assert there.trainer.started_from == [102]


async def test_a_manifest_waits_for_its_specification(broker, tmp_path) -> None:
    async with server_side(broker) as server, device(broker, tmp_path, silence_s=600) as there:
        await server.keep_model(Model(1))
        await server.keep(TOPICS.spec, b"")  # heard after the manifest
        await server.keep_spec()
        await server.update_from(Model(1))
        assert there.trainer.started_from == [101]


async def test_garbage_on_every_topic_is_ignored(broker, tmp_path, heard) -> None:
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        for topic in (TOPICS.spec, TOPICS.model, TOPICS.receipt(DEVICE)):
            await server.keep(topic, b"\xff not a message")
        await eventually(lambda: heard.count("ignored topic=") == 3, "all three are told")
        for topic in (TOPICS.spec, TOPICS.model, TOPICS.receipt(DEVICE)):
            await server.keep(topic, b"")  # cleared, which is no error
        await server.keep_spec()
        await server.keep_model(Model(1))
        update = await server.update()
        await server.keep(TOPICS.receipt(DEVICE), b"\x98")
        await server.settle(update)
        await eventually(lambda: not there.spool.open_updates(), "the update is settled")
    assert heard.count("ignored topic=") == 4


async def test_a_trainer_that_returns_nan_sends_nothing(broker, tmp_path, heard) -> None:
    async with server_side(broker) as server:
        async with device(broker, tmp_path, trainer=Tiny(bad=True)) as there:
            await server.keep_spec()
            await server.keep_model(Model(1))
            await eventually(lambda: heard.count("trainer_failed") == 1, "it is told")
            assert there.agent.online
            assert (there.spool.open_updates(), there.spool.created) == ([], 0)
            assert there.spool.load("residual") is None
        async with device(broker, tmp_path) as there:
            assert (await server.update()).base_version == 1
            assert there.created[0] == 1, "no number was used up"


# -- offline ----------------------------------------------------------------------------------


async def test_training_goes_on_offline_and_replaces_what_was_not_sent(broker, tmp_path) -> None:
    model = Model(1)
    there_before = tmp_path / "spool.sqlite"
    spool = Spool(there_before, new_boot=lambda: Boot(77))
    spool.save(
        spec=spec_to_json(SPEC),
        manifest=encode_manifest(model.manifest),
        params=model.params.tobytes(),
    )
    spool.close()
    broker.stop()
    async with device(broker, tmp_path) as there:
        await eventually(lambda: there.created == [1, 2, 3, 4], "four rounds on one base")
        assert not there.agent.online
        assert [(each.seq, each.sent) for each in there.spool.open_updates()] == [(4, False)]
        assert there.spool.superseded == 3
        assert there.trainer.started_from == pytest.approx([101, 101.5, 102, 102.5])
        residual = there.spool.load("residual")
        broker.start()
        async with server_side(broker) as server:
            update = await server.update()
    assert update.seq == 4
    codec = codec_by_name("topk_int8")
    assert residual is not None
    left = np.frombuffer(residual, dtype="<f4")
    learnt = to_dense(codec.decode(memoryview(bytes(update.payload)), SIZE), SIZE) + left
    expected = 4 * np.linspace(0.5, 1, SIZE, dtype=np.float32)
    np.testing.assert_allclose(learnt, expected, rtol=1e-3, err_msg="all four rounds, once")


async def test_a_restart_keeps_what_is_open_under_its_own_boot(broker, tmp_path) -> None:
    async with server_side(broker) as server:
        async with device(broker, tmp_path, boot=77) as there:
            await server.keep_spec()
            await server.keep_model(Model(1))
            first = await server.update()
            before = there.spool.open_updates()
        async with device(broker, tmp_path, boot=99) as there:
            assert there.spool.open_updates() == before
            await server.birth()
            again = await server.update()
            assert again == first
            assert there.trainer.started_from == [], "what was trained is not trained again"
            await server.settle(again)
            await eventually(lambda: not there.spool.open_updates(), "the update is settled")


async def test_a_model_with_another_digest_than_its_manifest_says_is_not_trained_on(
    broker, tmp_path, heard
) -> None:
    wrong = replace(Model(1).manifest, model_digest=bytes(32))
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_chunks(Model(1).chunks)
        await server.keep_manifest(wrong)
        await eventually(lambda: there.spool.load("params") is not None, "the blob is here")
        await turns(server, heard)
        await server.keep_model(Model(2))
        await server.update_from(Model(2))
        assert there.trainer.started_from == [102]


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_one_update_left_out_is_in_the_next(broker, tmp_path, *, restarted) -> None:
    async with server_side(broker) as server, AsyncExitStack() as life:
        await life.enter_async_context(device(broker, tmp_path))
        await server.keep_spec()
        await server.keep_model(Model(1))
        first = await server.update()
        await server.settle(first)
        if restarted:
            await life.aclose()
            await life.enter_async_context(device(broker, tmp_path))
        await server.keep_model(Model(2))
        second = await server.update_from(Model(2))
    codec = codec_by_name("topk_int8")
    one, two = (codec.decode(memoryview(bytes(u.payload)), SIZE) for u in (first, second))
    assert isinstance(one, Sparse)
    assert isinstance(two, Sparse)
    assert not set(one.indices) & set(two.indices), "what was left out has grown to the largest"
    assert float(np.abs(two.values).min()) > 1.0, "it is two rounds' worth"


class SentMeanwhile(Tiny):
    """Its second round ends after the first one's update was given to the network."""

    spool: Spool | None = None

    def train(
        self, tensors: Mapping[str, Any], options: object, rng: np.random.Generator
    ) -> TrainResult:
        if self.started_from and self.spool is not None:
            self.spool.mark_sent(Boot(77), Seq(1))
        return super().train(tensors, options, rng)


async def test_an_update_that_was_sent_while_the_next_round_ran_stays_alone(
    broker, tmp_path
) -> None:
    stored = Spool(tmp_path / "spool.sqlite", new_boot=lambda: Boot(77))
    manifest = encode_manifest(Model(1).manifest)
    stored.save(spec=spec_to_json(SPEC), manifest=manifest, params=Model(1).params.tobytes())
    stored.close()
    broker.stop()
    trainer = SentMeanwhile()
    trainer.spool = Spool(tmp_path / "spool.sqlite", new_boot=lambda: Boot(77))
    async with device(broker, tmp_path, trainer=trainer) as there:
        await eventually(lambda: len(trainer.started_from) == 2, "two rounds")
        await eventually(lambda: not there.spool.is_unsent(Boot(77), Seq(1)), "the first is sent")
        await asyncio.sleep(0.2)
        assert there.created == [1]
        assert [(each.seq, each.sent) for each in there.spool.open_updates()] == [(1, True)]
    trainer.spool.close()


async def test_a_device_that_is_stopped_says_that_it_is_offline(broker, tmp_path) -> None:
    async with server_side(broker) as server:
        async with device(broker, tmp_path):
            await server.birth()
        assert await server.state() == {"online": False, "boot": 77}


async def test_a_drained_device_still_sends_but_begins_nothing(broker, tmp_path) -> None:
    async with server_side(broker) as server, device(broker, tmp_path) as there:
        await server.keep_spec()
        await server.keep_model(Model(1))
        await server.update()
        there.agent.drain()
        await server.keep_model(Model(2))
        await eventually(lambda: there.spool.load("params") == Model(2).params.tobytes(), "adopted")
        update = await server.update()
        await server.settle(update)
        await eventually(lambda: not there.spool.open_updates(), "the update is settled")
        assert there.created == [1]
