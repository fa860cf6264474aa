"""A bound on the disk: what a spool really takes, and what an agent makes of too little."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent import disk
from edge_agent.agent import Agent
from edge_agent.settings import AgentSettings
from edge_agent.spool import DiskFull, Spool
from schemas.bundle import BundleRef
from schemas.errors import ConfigError
from schemas.messages import ModelUpdate
from schemas.names import Epoch, ModelVersion, Seq
from schemas.params import ParamSpec, TensorSpec
from schemas.task import (
    CodecOptions,
    InitOptions,
    LimitOptions,
    PublishOptions,
    TaskSpec,
    checked_spec,
    spec_to_json,
)
from schemas.wire import encode_update
from tests.edge_agent.played_server import (
    DEVICE,
    SPEC,
    Model,
    Tiny,
    device,
    eventually,
    server_side,
)

BASE = (Epoch(1), ModelVersion(0))
SIZES = (1, 1000, 50_000, 300_000)


def task(size: int, **limits: Any) -> TaskSpec:
    tensors = (TensorSpec("w", (size,)), TensorSpec("mine", (size // 4 + 1,), "local"))
    codec = CodecOptions(name="topk_int8")  # keeps two residuals
    return TaskSpec(ParamSpec(tensors), codec=codec, limits=LimitOptions(**limits))


def taken(path: Path) -> int:
    files = (path.with_name(path.name + end) for end in ("", "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


def live(spool: Spool, spec: TaskSpec, version: int, chunk_bytes: int) -> list[int]:
    """Fetch and adopt a model, and put an update of the largest size; what was taken meanwhile."""
    path, seen = Path(spool._db.execute("PRAGMA database_list").fetchone()[2]), []
    model = bytes(4 * spec.params.size)
    manifest = replace(Model(1).manifest, blob_bytes=len(model), chunk_bytes=chunk_bytes)
    assert spool.room_for_model(disk.chunks_on_pages(manifest), len(model))
    for first in range(0, manifest.chunks, 8):
        window = range(first, min(first + 8, manifest.chunks))
        pieces = ((i, model[i * chunk_bytes : (i + 1) * chunk_bytes]) for i in window)
        spool.add_chunks(f"k1-{version}", pieces)
        seen.append(taken(path))
    spool.save(manifest=b"m", params=model)
    seen.append(taken(path))
    spool.drop_chunks()
    spool.put(
        lambda _: bytes(spec.max_update_bytes),
        base=(Epoch(1), ModelVersion(version)),
        residual=bytes(4 * spec.params.wire_size),
        local={"mine": bytes(4 * spec.params.tensors[1].size)},
    )
    return [*seen, taken(path)]


@pytest.mark.parametrize("size", SIZES)
def test_a_task_lives_within_the_least_bound_that_is_told(tmp_path: Path, size: int) -> None:
    spec = task(size)
    bound = disk.megabytes_needed(spec)
    seen = []
    with closing(Spool(tmp_path / "spool.sqlite", disk_mb=bound)) as spool:
        for version in range(6):
            assert disk.update_bytes(spec) <= disk.room_for_updates(bound * disk.MB, spec)
            seen += live(spool, spec, version, 4096)
            for update in spool.open_updates():
                spool.mark_sent(update.boot, update.seq)
            spool.settle(spool.boot, lambda _: True)
    assert max(seen) <= bound * disk.MB
    if size > 10_000:
        assert max(seen) > bound * disk.MB / 4, "the estimate is not far off"


@pytest.mark.parametrize("init", [None, InitOptions()], ids=["fetched", "begun late"])
def test_a_model_on_a_lattice_lives_within_the_least_bound_that_is_told(
    tmp_path: Path, init: InitOptions | None
) -> None:
    plain = task(60_000)
    publish = PublishOptions(lattice=True)
    spec = checked_spec(msgspec.structs.replace(plain, publish=publish, init=init))
    more = disk.fixed_bytes(spec) - disk.fixed_bytes(plain)
    place, whole = 4 * spec.params.wire_size, 4 * spec.params.size
    assert more >= place + whole, "W0 may have to be fetched even where a seed is told"
    bound = disk.megabytes_needed(spec)
    path, chunk = tmp_path / "spool.sqlite", bytes(4096)
    with closing(Spool(path, disk_mb=bound)) as spool:
        seen = []

        def fetched(blob: str, size: int) -> None:
            for first in range(0, size // 4096, 8):
                pieces = {(blob, index): chunk for index in range(first, first + 8)}
                spool.keep_pieces(pieces, of=[blob, "another"])
                seen.append(taken(path))

        fetched("o1", whole)
        spool.save(origin=bytes(whole))
        spool.drop_chunks()
        for version in range(3):
            seen += live(spool, spec, version, 4096)
            fetched(f"k1-{version}", whole)
            spool.save(manifest=b"m", params=bytes(whole), q=bytes(place), exponents=b"\5")
            spool.drop_chunks()
            seen.append(taken(path))
            for update in spool.open_updates():
                spool.mark_sent(update.boot, update.seq)
            spool.settle(spool.boot, lambda _: True)
        assert spool.bytes_of("q") == place
        assert spool.bytes_of("nothing") == 0
    assert bound * disk.MB / 4 < max(seen) <= bound * disk.MB


def test_a_task_with_a_bundle_lives_within_the_least_bound_that_is_told(tmp_path: Path) -> None:
    plain = task(20_000)
    spec = checked_spec(msgspec.structs.replace(plain, bundle=BundleRef("ab" * 32, 700_000)))
    bound, path = disk.megabytes_needed(spec), tmp_path / "spool.sqlite"
    more = disk.fixed_bytes(spec) - disk.fixed_bytes(plain)
    assert more > 2 * 700_000 - 8 * plain.params.size, "the bundle, and the chunks before it"
    with closing(Spool(path, disk_mb=bound)) as spool:
        seen = []
        for version in range(2):  # a second one, when the task is made anew
            blob = f"b{version}"
            for first in range(0, 700_000 // 4096, 8):
                spool.add_chunks(blob, ((i, bytes(4096)) for i in range(first, first + 8)))
                seen.append(taken(path))
            spool.save(bundle=bytes(700_000), bundle_digest=bytes(64))
            spool.drop_chunks()
            seen += live(spool, spec, version, 4096)
            for update in spool.open_updates():
                spool.mark_sent(update.boot, update.seq)
            spool.settle(spool.boot, lambda _: True)
    assert bound * disk.MB / 4 < max(seen) <= bound * disk.MB


def test_a_bundle_needs_room_unless_it_takes_the_place_of_another(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool.sqlite", disk_mb=1)) as spool:
        assert spool.room_for_bundle(0, 500_000)
        assert not spool.room_for_bundle(300_000, 500_000)
        spool.save(params=bytes(300_000))
        assert not spool.room_for_bundle(0, 500_000)
        spool.save(params=b"", bundle=bytes(300_000))
        assert spool.room_for_bundle(0, 500_000)
    with closing(Spool(tmp_path / "free.sqlite")) as spool:
        assert spool.room_for_bundle(1 << 30, 1 << 30)


def test_the_place_on_a_lattice_needs_room_too(tmp_path: Path) -> None:
    with closing(Spool(tmp_path / "spool.sqlite", disk_mb=1)) as spool:
        assert spool.room_for_model(0, 350_000)
        assert not spool.room_for_model(0, 350_000, 350_000)
        assert spool.room_for_model(0, 250_000, 250_000)
        spool.save(params=bytes(250_000), q=bytes(250_000))
        assert spool.room_for_model(0, 250_000, 250_000), "it takes the place of the old one"


@pytest.mark.parametrize("chunk_bytes", [64, 700, 2100, 4096, 65_536])
def test_whatever_the_chunks_size_a_model_that_fits_is_fetched(
    tmp_path: Path, chunk_bytes: int
) -> None:
    spec = task(20_000)
    bound = 4 * disk.megabytes_needed(spec)
    with closing(Spool(tmp_path / "spool.sqlite", disk_mb=bound)) as spool:
        for version in range(3):
            assert max(live(spool, spec, version, chunk_bytes)) <= bound * disk.MB


def test_open_updates_never_take_more_than_the_bound(tmp_path: Path) -> None:
    spec, bound, path = task(20_000), 3, tmp_path / "spool.sqlite"
    room = disk.room_for_updates(bound * disk.MB, spec)
    seen, made = [], 0
    with closing(Spool(path, disk_mb=bound)) as spool:
        while spool.open_bytes + disk.update_bytes(spec) <= room:
            seen += live(spool, spec, made, 4096)
            made += 1
        assert made > 3
        assert max(seen) <= bound * disk.MB


def test_the_database_itself_stops_at_the_bound_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with closing(Spool(path, disk_mb=1)) as spool:
        made: list[bytes] = []

        def put_more() -> None:
            while True:
                made.append(bytes([len(made)]) * 50_000)
                spool.put(lambda _: made[-1], base=BASE, residual=made[-1])

        with pytest.raises(DiskFull):
            put_more()
        assert 5 < len(made) < 30
        assert [each.message for each in spool.open_updates()] == made[:-1]
        assert spool.load("residual") == made[-2]
        assert taken(path) <= disk.MB
        spool.mark_sent(spool.boot, Seq(1))
        assert spool.settle(spool.boot, lambda seq: seq == 1) == [1]
        spool.put(lambda _: made[-1], base=BASE, residual=None)


def test_a_log_that_a_large_model_has_grown_is_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with closing(Spool(path)) as spool:
        spool.save(params=bytes(20 * disk.MB))
        assert (tmp_path / "spool.sqlite-wal").stat().st_size > 20 * disk.MB
        for number in range(3):
            spool.save(spec=b"%d" % number)
        assert (tmp_path / "spool.sqlite-wal").stat().st_size <= 4 * disk.MB


def test_a_file_that_takes_more_than_a_bound_that_was_lowered_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spool.sqlite"
    with closing(Spool(path)) as spool:
        spool.save(params=bytes(3 * disk.MB))
    with pytest.raises(ConfigError) as refused:
        Spool(path, disk_mb=2)
    assert refused.value.field == "disk_mb"
    assert "give 5 or move it away" in refused.value.remedy
    Spool(path, disk_mb=5).close()


async def test_a_bound_in_which_the_task_cannot_live_ends_the_agent_and_names_what_it_needs(
    tmp_path: Path,
) -> None:
    spec = task(300_000)
    settings = AgentSettings(
        device=DEVICE,
        task="pumps",
        trainer="not:used",
        mqtt_port=1,
        disk_mb=2,
        state_dir=str(tmp_path),
    )
    agent = Agent(settings, Tiny())
    agent._spool.save(spec=spec_to_json(spec))
    with pytest.raises(ConfigError) as refused:
        await agent.run()
    agent._spool.close()
    assert refused.value.field == "disk_mb"
    assert f"2 MB cannot hold this task: give {disk.megabytes_needed(spec)}" in refused.value.remedy


def put_one(spool: Spool, size: int) -> None:
    """An update that takes so much, as if trained from an earlier model."""

    def write(seq: Seq) -> bytes:
        return encode_update(
            ModelUpdate(
                epoch=Epoch(1),
                boot=spool.boot,
                seq=seq,
                base_version=ModelVersion(0),
                base_digest=1,
                spec_digest=SPEC.params.short_digest,
                codec=0,
                num_examples=1,
                payload=bytes(size),
            )
        )

    spool.put(write, base=BASE, residual=None)


def fill(spool: Spool, size: int) -> None:
    while True:
        put_one(spool, size)


async def test_an_agent_whose_bound_is_reached_waits_for_receipts(
    mosquitto, tmp_path, heard
) -> None:
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path, disk_mb=1) as there:
        put_one(there.spool, 555_000)
        there.agent._link.wake()
        await server.keep_spec()
        await server.keep_model(Model(1))
        await eventually(lambda: heard.count("outbox_full") > 0, "it is told")
        assert there.agent.resting == "1 updates wait for their Receipt"
        assert there.trainer.started_from == []
        await server.settle(await server.update())
        await server.update_from(Model(1))


async def test_a_model_for_which_there_is_no_room_is_refused_once_and_fetched_when_there_is(
    mosquitto, tmp_path, heard
) -> None:
    async with server_side(mosquitto) as server, device(mosquitto, tmp_path, disk_mb=1) as there:
        await server.keep_spec()
        await eventually(lambda: there.spool.load("spec") is not None, "the task is here")
        for size in (50_000, 3000, 10):
            with pytest.raises(DiskFull):
                fill(there.spool, size)
        there.agent._link.wake()
        await server.keep_model(Model(1))
        await eventually(lambda: heard.count("no room for it within disk_mb=1") == 1, "refused")
        await server.keep_model(Model(1))
        await eventually(lambda: all(each.sent for each in there.spool.open_updates()), "all sent")
        assert there.spool.chunks("k1-1") == {}
        await server.settle(await server.update(), low=500)
        await server.update_from(Model(1))
    assert heard.count("model_refused") == 1
    assert heard.count("disk_full") == 0
