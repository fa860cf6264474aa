"""A task's bundle on its way to the trainer: a real agent against real brokers."""

import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import bundling
import msgspec
import pytest
import servers

from edge_agent import bundles
from edge_agent.bundles import BundleFetcher, checked, loading, missing, stored_bundle
from edge_agent.fetching import Fetcher
from edge_agent.settings import AgentSettings
from edge_agent.spool import DiskFull, Spool
from edge_agent.trainer import Bundled
from schemas.bundle import Bundle, BundleRef, ref_of
from schemas.inputs import InputOptions
from schemas.params import ParamSpec, TensorSpec
from schemas.task import checked_spec, spec_to_json
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


async def test_newer_models_do_not_cut_off_the_bundle_of_a_task_that_was_made_anew(
    mosquitto, tmp_path, asked, heard
) -> None:
    other = bundling.packed(SPEC.params, bundling.graph("other"))
    ref = ref_of(other, CHUNK_BYTES)
    async with server_side(mosquitto) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(mosquitto, tmp_path, trainer=Takes(), silence_s=600) as there:
            await server.settle(await server.update_from(Model(1)))
            await server.keep_spec(msgspec.structs.replace(WITH, bundle=ref))
            await eventually(lambda: numbers(asked, ref.blob) != [], "it asks for the other one")
            for version in range(2, 6):
                await server.keep_manifest(Model(version).manifest)
            await turns(server, heard)
            assert heard.count(f"silence blob={ref.blob}") == 0
            await server.keep_chunks([*of(other), *Model(5).chunks])
            await server.update_from(Model(5))
            assert there.trainer.taken[-1].digest == ref.digest


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


async def test_a_trainer_that_refuses_it_is_given_it_again(broker, tmp_path, heard, caplog) -> None:
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
    levels = {r.levelname for r in caplog.records if "cannot load it" in r.getMessage()}
    assert levels == {"WARNING"}, "it does not pass by itself, as a condition does"


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


async def test_a_trainer_that_chokes_on_the_bundle_is_tried_again_later_and_later(
    mosquitto, tmp_path, heard, monkeypatch
) -> None:
    class Chokes(Takes):
        def take_bundle(self, bundle, given):
            self.order.append("choked")
            if len(self.order) < 3:
                raise IndexError("no such axis")
            super().take_bundle(bundle, given)

    pauses: list[int] = []

    class Retry:
        def bound_s(self, failures: int) -> float:
            pauses.append(failures)
            return 0.05

    monkeypatch.setattr("edge_agent.agent.RETRY", Retry())
    async with server_side(mosquitto) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(mosquitto, tmp_path, trainer=Chokes(), silence_s=0.2) as there:
            why = "the trainer did not take the task's bundle: IndexError('no such axis')"
            await eventually(lambda: there.agent.resting == why, "it says why it rests")
            await server.keep_model(Model(2))
            await server.keep_model(Model(3))
            await server.update_from(Model(3))
            assert there.trainer.order[:3] == ["choked"] * 3
    assert pauses == [1, 2]
    assert heard.count("trainer_failed error=no such axis") == 2


async def test_what_it_choked_on_is_not_waited_out_when_the_task_has_another_input(
    mosquitto, tmp_path, heard
) -> None:
    class Picky(Takes):
        def take_bundle(self, bundle, given):
            if not given.features:
                raise IndexError("no such axis")
            super().take_bundle(bundle, given)

    async with server_side(mosquitto) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(mosquitto, tmp_path, trainer=Picky()) as there:
            await eventually(lambda: "no such axis" in there.agent.resting, "it rests")
            given = InputOptions(features=("a", "b", "c"))
            await server.keep_spec(checked_spec(msgspec.structs.replace(WITH, input=given)))
            await server.update_from(Model(1))
    assert heard.count("trying again in 30 s") == 1


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


@dataclass
class Broker:
    """Stands in for `Windows`: gives every chunk that is asked for, and counts them."""

    data: bytes
    given: int = 0
    spent: int = 0

    async def fetch(self, session, pieces, fits):
        self.given += len(pieces)
        starts = {(blob, index): index * CHUNK_BYTES for blob, index in pieces}
        return {piece: self.data[at : at + CHUNK_BYTES] for piece, at in starts.items()}

    def forget(self):
        """It counts on."""


SETTINGS = AgentSettings(
    device=DEVICE, task="pumps", trainer="no:ne", silence_s=30, resend_longest_s=600
)


def fetcher_of(spool, data=PACKED, spec=WITH, *, wanted=True):
    broker = Broker(data)
    return BundleFetcher(SETTINGS, broker, spool, spec=lambda: spec, wanted=wanted), broker


@pytest.fixture
def spool(tmp_path):
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        yield spool


def test_a_bundle_of_other_bytes_is_asked_for_later_and_later(spool):
    fetcher, _ = fetcher_of(spool)
    pauses = []
    for _ in range(7):
        assert not fetcher._keep(b"no bundle", WITH)
        pauses.append(fetcher.pause_s())
    assert all(before * 1.5 < after for before, after in pairwise(pauses[:5]))
    assert 590 < pauses[-1] <= 600
    assert fetcher.lacks(WITH)
    assert missing(spool, WITH) == "the task's bundle is not here yet"


# -- what this fedmq cannot load ------------------------------------------------------------------


def newer():
    """A bundle whose manifest is of a schema that this fedmq does not read."""
    parts = msgspec.msgpack.decode(PACKED)
    told = msgspec.json.decode(parts["manifest"]) | {"schema": 2}
    return msgspec.msgpack.encode(parts | {"manifest": msgspec.json.encode(told)})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (newer(), "schema 2; this fedmq reads 1"),
        (bundling.packed(SPEC.params, bundling.graph("step", opset=24)), "opset 24"),
        (bundling.packed(ParamSpec((TensorSpec("v", (200,)),))), "its tensors are not the task's"),
    ],
    ids=["schema", "opset", "tensors"],
)
async def test_the_very_bundle_that_is_named_is_fetched_once_when_it_is_refused(
    spool, monkeypatch, data, why
) -> None:
    spec = checked_spec(msgspec.structs.replace(SPEC, bundle=ref_of(data, CHUNK_BYTES)))
    fetcher, broker = fetcher_of(spool, data, spec)
    assert fetcher.lacks(spec)
    for _ in range(3):
        assert not await fetcher.fetch(None, spec)
    assert broker.given == -(-len(data) // CHUNK_BYTES)
    assert spool.all_chunks() == {}
    assert missing(spool, spec).startswith("the task's bundle is refused: ")
    assert why in missing(spool, spec)
    for again in (fetcher, fetcher_of(spool, data, spec)[0]):  # after the next start, too
        assert not again.lacks(spec)
        assert again.lacks(WITH), "another one is fetched"
        again.store_spec(spec_to_json(spec), spec)
        assert not again.lacks(spec), "a change of the learning rate is no other bundle"
    other = msgspec.structs.replace(spec, params=ParamSpec((TensorSpec("u", (3,)),)))
    assert fetcher.lacks(other), "it may fit other tensors"
    monkeypatch.setattr(bundles, "_version", lambda package: f"{package} 99")
    assert fetcher.lacks(spec), "a newer fedmq may read it"


async def test_the_agent_is_told_that_a_bundle_was_refused(spool) -> None:
    data, news = newer(), []
    spec = checked_spec(msgspec.structs.replace(SPEC, bundle=ref_of(data, CHUNK_BYTES)))

    async def on_news():
        news.append(missing(spool, spec))

    fetcher = Fetcher(SETTINGS, TOPICS, DEVICE, spool, on_news=on_news, bundled=True)
    fetcher._bundles, _ = fetcher_of(spool, data, spec)
    await fetcher._fetch_bundle(None, spec)
    assert [why[:31] for why in news] == ["the task's bundle is refused: t"]


async def test_a_device_says_what_is_wrong_with_a_bundle_and_follows_models(
    broker, tmp_path, asked, heard
) -> None:
    data = newer()
    spec = checked_spec(msgspec.structs.replace(SPEC, bundle=ref_of(data, CHUNK_BYTES)))
    async with server_side(broker) as server:
        await server.keep_chunks(of(data))
        await server.keep_spec(spec)
        async with device(broker, tmp_path, trainer=Takes(), silence_s=0.05) as there:
            told = "bundle_refused error=these bytes are no bundle: a manifest of schema 2"
            await eventually(lambda: heard.count(told) == 1, "it says so")
            for version in (1, 2):
                await server.keep_model(Model(version))
                await eventually(lambda n=version: there.agent.version == n, "it is followed")
            await eventually(lambda: there.agent.caught_up, "nothing is to be fetched")
            why = "the task's bundle is refused: "
            await eventually(lambda: there.agent.resting.startswith(why), "it rests with it")
            assert there.trainer.order == []
            await server.keep_chunks(of())
            await server.keep_spec(WITH)
            await server.update_from(Model(2))
    assert heard.count("bundle_refused") == 1
    assert len(numbers(asked, spec.bundle.blob)) == -(-len(data) // CHUNK_BYTES)


# -- what ends the process ------------------------------------------------------------------------


def ends_while_loading(spool):
    """What the disk holds when the process ends within."""
    with loading(spool, REF):
        note = spool.load("bundle_loading")
    spool.save(bundle_loading=note)


def test_a_bundle_whose_loading_has_ended_the_process_rests_until_something_is_other(
    spool, monkeypatch
):
    spool.save(bundle=PACKED, bundle_digest=REF.digest.encode())
    for _ in range(bundles.LOADS_MAX):
        assert stored_bundle(spool, WITH) is not None
        ends_while_loading(spool)
    with pytest.raises(ValueError, match="has ended this process 2 times, and is not tried again"):
        stored_bundle(spool, WITH)
    other = bundling.packed(SPEC.params, bundling.graph("step", operator="Tanh"))
    ref = ref_of(other, CHUNK_BYTES)
    with spool_with(spool, bundle=other, bundle_digest=ref.digest.encode()):
        assert stored_bundle(spool, msgspec.structs.replace(WITH, bundle=ref)) is not None
    monkeypatch.setattr(bundles, "_version", lambda package: f"{package} 99")
    assert stored_bundle(spool, WITH) is not None, "a newer one may load it"


@contextmanager
def spool_with(spool, **values):
    before = {name: spool.load(name) for name in values}
    spool.save(**values)
    yield
    spool.save(**before)


def test_a_bundle_that_was_loaded_or_refused_in_a_sentence_may_be_loaded_again(spool):
    spool.save(bundle=PACKED, bundle_digest=REF.digest.encode())
    ends_while_loading(spool)  # a power cut
    for _ in range(3 * bundles.LOADS_MAX):
        with loading(spool, REF):
            assert spool.load("bundle_loading") is not None
        with pytest.raises(ValueError, match="no data"), loading(spool, REF):
            raise ValueError("no data")
        assert spool.load("bundle_loading") is None
    assert stored_bundle(spool, WITH) is not None


def test_the_note_outlives_a_process_that_is_killed(tmp_path):
    path = tmp_path / "spool.sqlite"
    told = f"""
import os
from pathlib import Path
from edge_agent.bundles import loading
from edge_agent.spool import Spool
from schemas.bundle import BundleRef
spool = Spool(Path({str(path)!r}))
with loading(spool, BundleRef({REF.digest!r}, {REF.bytes}, {REF.chunk_bytes})):
    os._exit(9)
"""
    for _ in range(bundles.LOADS_MAX):
        done = subprocess.run([sys.executable, "-c", told], cwd=servers.ROOT, check=False)
        assert done.returncode == 9
    with closing(Spool(path)) as spool:
        spool.save(bundle=PACKED, bundle_digest=REF.digest.encode())
        with pytest.raises(ValueError, match="is not tried again"):
            stored_bundle(spool, WITH)


def test_a_full_disk_does_not_keep_a_bundle_from_being_loaded(spool, monkeypatch):
    def full(*_forget, **_values):
        raise DiskFull("database or disk is full")

    monkeypatch.setattr(spool, "save", full)
    with loading(spool, REF):
        pass


# -- what is of no use any more -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "wanted", "stays"),
    [
        (WITH, True, True),
        (SPEC, True, False),
        (msgspec.structs.replace(SPEC, bundle=BundleRef("ab" * 32, 700)), True, False),
        (WITH, False, False),
    ],
    ids=["the same", "none", "another", "a trainer of one's own"],
)
def test_a_bundle_goes_with_the_specification_that_named_it(spool, spec, wanted, stays):
    fetcher, _ = fetcher_of(spool, wanted=wanted)
    spool.save(bundle=PACKED, bundle_digest=REF.digest.encode())
    fetcher.store_spec(spec_to_json(spec), spec)
    assert spool.load("spec") == spec_to_json(spec)
    assert spool.load("bundle") == (PACKED if stays else None)
    assert spool.load("bundle_digest") == (REF.digest.encode() if stays else None)


@pytest.mark.parametrize(
    ("spec", "wanted", "stays"),
    [(WITH, True, True), (None, True, True), (SPEC, True, False), (None, False, False)],
)
def test_a_bundle_that_the_trainer_does_not_take_is_forgotten_at_the_start(
    spool, spec, wanted, stays
):
    spool.save(bundle=PACKED, bundle_digest=REF.digest.encode())
    fetcher_of(spool, spec=spec, wanted=wanted)
    assert (spool.load("bundle") is not None) == stays


def test_a_bundle_that_is_overtaken_while_it_is_looked_through_is_not_kept(spool):
    fetcher, _ = fetcher_of(spool, spec=SPEC)  # what holds now
    assert not fetcher._keep(PACKED, WITH)
    assert spool.load("bundle") is None


def test_an_old_bundle_does_not_keep_a_new_model_out(tmp_path):
    old = msgspec.structs.replace(SPEC, bundle=BundleRef("ab" * 32, 2 << 20))
    with closing(Spool(tmp_path / "spool.sqlite", disk_mb=5)) as spool:
        fetcher, _ = fetcher_of(spool, spec=old)
        spool.save(bundle=bytes(2 << 20), bundle_digest=b"ab" * 32)
        assert not spool.room_for_model(1 << 20, 1 << 20), "it is counted until then"
        fetcher.store_spec(spec_to_json(SPEC), SPEC)
        assert spool.room_for_model(1 << 20, 1 << 20)


async def test_a_task_without_a_bundle_takes_the_old_one_off_the_disk(broker, tmp_path) -> None:
    async with server_side(broker) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        async with device(broker, tmp_path, trainer=Takes()) as there:
            await eventually(lambda: there.spool.load("bundle") == PACKED, "it is here")
            await server.keep_spec(SPEC)
            await eventually(lambda: there.spool.load("bundle") is None, "it has gone")


async def test_a_device_rests_where_a_bundle_has_ended_its_process_twice(
    mosquitto, tmp_path, heard
) -> None:
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        for _ in range(bundles.LOADS_MAX):
            ends_while_loading(spool)
    async with server_side(mosquitto) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(mosquitto, tmp_path, trainer=Takes()) as there:
            why = "loading the task's bundle has ended this process 2 times"
            await eventually(lambda: there.agent.resting.startswith(why), "it says why it rests")
            await server.keep_model(Model(2))
            await eventually(lambda: there.agent.version == 2, "models are followed all the same")
            assert there.trainer.order == []
    assert heard.count(f"not_training: {why}") >= 1


async def test_a_bundle_is_noted_only_while_the_trainer_takes_it(mosquitto, tmp_path) -> None:
    notes = []

    class Looks(Takes):
        def take_bundle(self, bundle, given):
            with closing(Spool(tmp_path / "spool.sqlite")) as spool:
                notes.append(spool.load("bundle_loading"))
            super().take_bundle(bundle, given)

    async with server_side(mosquitto) as server:
        await server.keep_chunks(of())
        await server.keep_spec(WITH)
        await server.keep_model(Model(1))
        async with device(mosquitto, tmp_path, trainer=Looks()) as there:
            await server.update_from(Model(1))
            assert there.spool.load("bundle_loading") is None
    assert [note.split()[0].decode() for note in notes] == [REF.digest]
