"""A task's bundle on its way to the trainer: a real agent against real brokers."""

from dataclasses import dataclass, field
from itertools import pairwise

import bundling
import msgspec
import pytest

from edge_agent.bundles import checked, stored_bundle
from edge_agent.spool import Spool
from edge_agent.trainer import Bundled
from schemas.bundle import Bundle, ref_of
from schemas.inputs import InputOptions
from schemas.params import ParamSpec, TensorSpec
from schemas.task import checked_spec
from tests.edge_agent.played_server import (
    CHUNK_BYTES,
    DEVICE,
    SPEC,
    TOPICS,
    Model,
    Tiny,
    device,
    eventually,
    server_side,
    turns,
)

PACKED = bundling.packed(SPEC.params)
REF = ref_of(PACKED, CHUNK_BYTES)
CHUNKS = -(-len(PACKED) // CHUNK_BYTES)
WITH = checked_spec(msgspec.structs.replace(SPEC, bundle=REF))


@dataclass
class Takes(Tiny):
    """A trainer that notes what it was given, and when."""

    taken: list[Bundle] = field(default_factory=list)
    refuses: int = 0
    order: list[str] = field(default_factory=list)
    given: list[InputOptions] = field(default_factory=list)

    def take_bundle(self, bundle, given):
        self.order.append("bundle")
        if self.refuses:
            self.refuses -= 1
            msg = "this machine cannot load it"
            raise ValueError(msg)
        self.taken.append(bundle)

    def train(self, tensors, options, rng):
        self.order.append("train")
        return super().train(tensors, options, rng)


def of(data=PACKED):
    ref = ref_of(data, CHUNK_BYTES)
    count = -(-len(data) // CHUNK_BYTES)
    return [
        (TOPICS.chunk(ref.blob, i), data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES])
        for i in range(count)
    ]


def numbers(asked, blob=REF.blob):
    return [int(topic.rsplit("/", 1)[1]) for topic in asked if f"/{blob}/" in topic]


async def test_a_device_fetches_the_bundle_and_hands_it_over_before_it_trains(
    broker, tmp_path, asked
) -> None:
    assert isinstance(Takes(), Bundled)
    async with server_side(broker) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Takes()) as there:
            await server.update_from(Model(1))
            assert there.trainer.order[:2] == ["bundle", "train"]
            (bundle,) = there.trainer.taken
            assert (bundle.step, bundle.infer) == (bundling.STEP, bundling.INFER)
            assert bundle.digest == REF.digest
            assert there.spool.load("bundle") == PACKED
            assert there.spool.all_chunks() == {}
            assert numbers(asked) == list(range(CHUNKS))
            first_of_model = asked.index(TOPICS.chunk(Model(1).blob, 0))
            assert first_of_model == CHUNKS, "nothing of a model before the bundle is whole"


async def test_a_device_that_was_switched_off_asks_only_for_the_chunks_that_it_lacks(
    broker, tmp_path, asked
) -> None:
    async with server_side(broker) as server:
        await server.keep_chunks(of()[:5])
        await server.keep_spec(WITH)
        async with device(broker, tmp_path, trainer=Takes(), silence_s=0.2) as there:
            await eventually(lambda: len(there.spool.chunks(REF.blob)) == 5, "five are here")
            assert there.agent.resting == "the task's bundle is not here yet"
        asked.clear()
        await server.keep_chunks(of())
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Takes()) as there:
            await server.update_from(Model(1))
            assert len(there.trainer.taken) == 1
        assert numbers(asked) == list(range(5, CHUNKS))


async def test_a_bundle_that_is_not_there_yet_is_asked_for_again(broker, tmp_path) -> None:
    async with server_side(broker) as server:
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Takes(), silence_s=0.1) as there:
            await server.birth()
            why = "the task's bundle is not here yet"
            await eventually(lambda: there.agent.resting == why, "it says what is missing")
            assert not there.agent.caught_up
            await server.keep_chunks(of())
            await server.update_from(Model(1))


async def test_a_tampered_bundle_is_never_handed_over_and_the_right_one_is_fetched_later(
    broker, tmp_path, heard
) -> None:
    topic, chunk = of()[3]
    async with server_side(broker) as server:
        await server.keep_chunks(of())
        await server.keep(topic, chunk[:-1] + bytes([chunk[-1] ^ 1]))
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Takes(), silence_s=0.2) as there:
            told = "bundle_refused error=it has another digest"
            await eventually(lambda: heard.count(told) > 1, "it is refused, and tried again")
            assert there.spool.load("bundle") is None
            assert there.trainer.order == []
            await server.keep(topic, chunk)
            await server.update_from(Model(1))
            assert there.trainer.taken[0].digest == REF.digest


async def test_a_newer_model_does_not_hasten_what_was_refused(
    mosquitto, tmp_path, asked, heard
) -> None:
    """A fleet must not fetch a bad bundle again with every version."""
    topic, chunk = of()[0]
    async with server_side(mosquitto) as server:
        await server.keep_chunks([*of(), (topic, bytes(len(chunk)))])
        await server.keep_spec(WITH)
        async with device(mosquitto, tmp_path, trainer=Takes(), silence_s=1000.0) as there:
            await eventually(lambda: len(numbers(asked)) == CHUNKS, "it was fetched once")
            await eventually(lambda: there.spool.all_chunks() == {}, "and thrown away")
            for version in range(1, 6):
                await server.keep_model(Model(version))
            await turns(server, heard)
            assert len(numbers(asked)) == CHUNKS


async def test_a_bundle_on_the_disk_is_handed_over_without_asking(broker, tmp_path, asked) -> None:
    async with server_side(broker) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Takes()):
            await server.settle(await server.update_from(Model(1)))
        asked.clear()
        await server.keep_model(Model(2))
        async with device(broker, tmp_path, trainer=Takes()) as there:
            await server.update_from(Model(2))
            assert len(there.trainer.taken) == 1
        assert numbers(asked) == []


async def test_it_is_handed_over_once_for_all_rounds(broker, tmp_path) -> None:
    async with server_side(broker) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        async with device(broker, tmp_path, trainer=Takes()) as there:
            for version in (1, 2, 3):
                await server.keep_model(Model(version))
                await server.settle(await server.update_from(Model(version)))
            assert there.trainer.order.count("bundle") == 1


async def test_a_task_that_was_made_anew_gives_another_bundle(broker, tmp_path, asked) -> None:
    other = bundling.packed(SPEC.params, bundling.graph("step", operator="Tanh"))
    ref = ref_of(other, CHUNK_BYTES)
    again = checked_spec(msgspec.structs.replace(SPEC, bundle=ref))
    async with server_side(broker) as server:
        await server.keep_chunks([*of(), *of(other)])
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Takes()) as there:
            await server.settle(await server.update_from(Model(1)))
            await server.keep_spec(again)
            await server.keep_model(Model(1, epoch=2))
            await server.update_from(Model(1, epoch=2))
            assert [each.digest for each in there.trainer.taken] == [REF.digest, ref.digest]


async def test_a_trainer_that_refuses_it_is_given_it_again(broker, tmp_path, heard) -> None:
    async with server_side(broker) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Takes(refuses=1)) as there:
            why = "this machine cannot load it"
            await eventually(lambda: there.agent.resting == why, "its own sentence is told")
            await server.keep_model(Model(2))
            await server.update_from(Model(2))
            assert there.trainer.order[:3] == ["bundle", "bundle", "train"]
    assert heard.count("not_training: this machine cannot load it") == 1


async def test_a_trainer_of_ones_own_trains_and_leaves_the_bundle_alone(
    broker, tmp_path, asked
) -> None:
    async with server_side(broker) as server:
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Tiny()) as there:
            await server.update_from(Model(1))
            assert there.spool.load("bundle") is None
    assert numbers(asked) == []


async def test_a_trainer_that_needs_a_bundle_says_so_once_where_there_is_none(
    broker, tmp_path, heard
) -> None:
    async with server_side(broker) as server:
        await server.keep_spec()
        await server.keep_model(Model(1))
        async with device(broker, tmp_path, trainer=Takes()) as there:
            why = "the task 'pumps' has no bundle, and the trainer trains with nothing else"
            await eventually(lambda: there.agent.resting == why, "it says why it rests")
            await server.keep_model(Model(2))
            await eventually(lambda: there.agent.version == 2, "models are followed all the same")
            await eventually(lambda: there.agent.resting == why, "it still rests")
            assert there.trainer.order == []
    assert heard.count("create it with --bundle") == 1


# -- what is believed -----------------------------------------------------------------------------


def test_a_bundle_for_other_tensors_is_refused():
    data = bundling.packed(ParamSpec((TensorSpec("v", (200,)),)))
    spec = msgspec.structs.replace(SPEC, bundle=ref_of(data, 64))
    with pytest.raises(ValueError, match="tensors are not the task's"):
        checked(data, spec)


def test_a_bundle_that_is_not_safe_to_load_is_refused_though_its_digest_is_right():
    data = bundling.packed(SPEC.params, bundling.graph("step", opset=24))
    spec = msgspec.structs.replace(SPEC, bundle=ref_of(data, 64))
    with pytest.raises(ValueError, match=r"step\.onnx: the file has opset 24"):
        checked(data, spec)


def test_only_the_bundle_that_the_task_names_is_taken_from_the_disk(tmp_path):
    spool = Spool(tmp_path / "spool.sqlite")
    assert stored_bundle(spool, WITH) is None
    spool.save(bundle=PACKED, bundle_digest=REF.digest.encode())
    found = stored_bundle(spool, WITH)
    assert found is not None
    assert found.digest == REF.digest
    assert stored_bundle(spool, SPEC) is None
    spool.save(bundle=PACKED[:-1])
    with pytest.raises(ValueError, match="another digest"):
        stored_bundle(spool, WITH)
    spool.close()


async def test_a_bundle_beyond_the_disks_bound_is_refused_once(mosquitto, tmp_path, heard) -> None:
    big = ref_of(bytes(4 << 20), 4096)
    spec = checked_spec(msgspec.structs.replace(SPEC, bundle=big))
    async with server_side(mosquitto) as server:
        await server.keep_spec()
        async with device(mosquitto, tmp_path, trainer=Takes(), disk_mb=1, silence_s=0.05) as there:
            await server.birth()
            fetcher = there.agent._link._fetcher._bundles
            first, second = [fetcher._fits(big) for _ in range(2)]
            assert (first, second) == (False, False)
            assert fetcher._fits(REF)
            assert fetcher.lacks(spec)
    assert heard.count("bundle_refused bytes=4194304: no room for it within disk_mb=1") == 1


def test_a_refused_bundle_is_asked_for_later_and_later(tmp_path):
    from edge_agent.bundles import BundleFetcher
    from edge_agent.settings import AgentSettings
    from edge_agent.windows import Windows

    settings = AgentSettings(
        device=DEVICE, task="pumps", trainer="no:ne", silence_s=30, resend_longest_s=600
    )
    spool = Spool(tmp_path / "spool.sqlite")
    windows = Windows(settings, TOPICS, DEVICE)
    fetcher = BundleFetcher(settings, windows, spool, spec=lambda: WITH, wanted=True)
    pauses = []
    for _ in range(7):
        assert not fetcher._keep(b"no bundle", WITH)
        pauses.append(fetcher.pause_s())
    assert all(before * 1.5 < after for before, after in pairwise(pauses[:5]))
    assert 590 < pauses[-1] <= 600
    spool.close()
