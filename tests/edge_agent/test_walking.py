"""A real agent catches up with a model that walks on a lattice; the test plays the server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import aiomqtt
import msgspec
import numpy as np
import pytest
import servers

from edge_agent.catch_up import Packets
from edge_agent.fetching import Fetcher
from edge_agent.settings import AgentSettings
from edge_agent.spool import Spool
from edge_agent.walking import Walker
from edge_agent.windows import Windows
from lifetimes.together import end
from schemas.asking import Question, Reply, decode_ask, encode_reply
from schemas.messages import Manifest
from schemas.names import Epoch, ModelVersion
from schemas.params import base_digest, model_digest
from schemas.task import InitOptions, PublishOptions, spec_to_json
from schemas.wire import encode_manifest
from tests.edge_agent.played_lattice import Adds, Walk, lattice_spec
from tests.edge_agent.played_server import (
    DEVICE,
    TOPICS,
    Device,
    device,
    eventually,
    server_side,
    turns,
)


@asynccontextmanager
async def there(broker: servers.Server, path: Path, **options: Any) -> AsyncIterator[Device]:
    made: Any = Adds()
    async with device(broker, path, trainer=made, **options) as running:
        yield running


async def adopted(running: Device, walk: Walk, serial: int | None = None) -> None:
    """Wait for a publication, bit for bit, with its place on the lattice."""
    manifest = walk.manifest(serial)
    await eventually(lambda: running.agent.version == manifest.version, f"{manifest.version}")
    spool, want = running.spool, walk.params(manifest.serial)
    assert spool.load("params") == want.tobytes()
    assert running.agent._model is not None
    assert running.agent._model.params.tobytes() == want.tobytes()
    place = np.frombuffer(spool.load("q") or b"", dtype="<i4")
    assert place.tolist() == walk.points[manifest.serial].tolist()
    assert spool.load("exponents") == bytes(walk.exponents)


async def first_model(broker: servers.Server, path: Path, walk: Walk) -> None:
    """A life of the device that ends with the newest publication."""
    async with server_side(broker) as server, there(broker, path) as running:
        await server.keep_spec(walk.spec)
        await walk.keep(server)
        await adopted(running, walk)


@asynccontextmanager
async def answering(
    broker: servers.Server, answer: Callable[[Question], bytes]
) -> AsyncIterator[list[Question]]:
    """Somebody who answers what this device asks, as the bridge does."""
    asks: list[Question] = []
    async with aiomqtt.Client(servers.HOST, broker.port) as client:
        await client.subscribe(TOPICS.ask(DEVICE), 1)

        async def answer_all() -> None:
            async for message in client.messages:
                assert isinstance(message.payload, bytes)
                assert not message.retain
                asks.append(decode_ask(message.payload))
                await client.publish(TOPICS.reply(DEVICE), answer(asks[-1]), qos=1)

        running = asyncio.create_task(answer_all())
        yield asks
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def told(walk: Walk, ask: Question) -> bytes:
    return encode_reply(Reply(ask.epoch, ask.first, ask.last, walk.diff(ask.first, ask.last)))


def pieces_of(asked: list[str]) -> list[str]:
    return [topic.removeprefix(TOPICS.at("blob/")) for topic in asked]


def blobs_of(asked: list[str]) -> list[str]:
    """The blobs that were asked for, each once, in order; no chunk was asked for twice."""
    assert len(set(asked)) == len(asked)
    return list(dict.fromkeys(piece.split("/")[0] for piece in pieces_of(asked)))


# -- the first model --------------------------------------------------------------------------


async def test_the_first_model_is_drawn_from_the_seed_and_takes_a_keyframe_alone(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(3)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        await server.keep_spec(walk.spec)
        await walk.keep(server)
        await adopted(running, walk)
        update = await server.update()
        assert update.base_digest == base_digest(walk.manifest().model_digest)
    assert blobs_of(asked) == ["k1-30"]
    size = len(walk.keyframe(3))
    assert heard.count(f"caught_up epoch=1 version=30 way=keyframe bytes={size} ") == 1


@pytest.mark.parametrize("init", [None, InitOptions(seed=6)], ids=["a file", "another generator"])
async def test_an_origin_that_cannot_be_drawn_is_fetched_once(
    mosquitto, tmp_path, asked, init
) -> None:
    walk = Walk(lattice_spec(init=init)).go(1)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        await server.keep_spec(walk.spec)
        await walk.keep(server, origin=True)
        await adopted(running, walk)
        name = walk.manifest(origin=True).origin
        assert blobs_of(asked) == [name, "k1-10"]
        asked.clear()
        walk.go(1)
        await walk.keep(server, origin=True)
        await adopted(running, walk)
        assert blobs_of(asked) == ["d1-1-0"]


async def test_an_origin_that_is_not_to_be_had_is_told_and_waited_for(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk(lattice_spec(init=None)).go(1)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path, silence_s=600):
        await server.keep_spec(walk.spec)
        await walk.keep(server)
        await eventually(lambda: heard.count("neither be drawn nor fetched") == 1, "it is told")
        await turns(server, heard)
    assert asked == []


# -- the next ones ----------------------------------------------------------------------------


async def test_one_diff_leads_to_the_next_model(mosquitto, tmp_path, asked, heard) -> None:
    walk = Walk().go(7)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        await server.keep_spec(walk.spec)
        for steps in (0, 1, 8):  # 7 to 8, and 8 to 16 by one rung
            await walk.go(steps).keep(server)
            await adopted(running, walk)
    assert blobs_of(asked) == ["k1-70", "d1-7-0", "d1-8-3"]
    assert heard.count("way=ladder bytes=") == 2


async def test_who_slept_asks_and_is_told_one_diff(mosquitto, tmp_path, asked, heard) -> None:
    walk = Walk().go(3)
    await first_model(mosquitto, tmp_path, walk)
    asked.clear()
    walk.go(24)
    async with (
        answering(mosquitto, lambda ask: told(walk, ask)) as asks,
        server_side(mosquitto) as server,
        there(mosquitto, tmp_path) as running,
    ):
        await walk.keep(server)
        await adopted(running, walk)
    assert asks == [Question(Epoch(1), 3, 27)]
    assert asked == []
    assert heard.count(f"version=270 way=ask bytes={len(walk.diff(3, 27))} ") == 1


async def test_who_hears_no_answer_takes_the_ladder_in_one_window(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(3)
    await first_model(mosquitto, tmp_path, walk)
    asked.clear()
    walk.go(24)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path, silence_s=0.2) as runs:
        await walk.keep(server)
        await adopted(runs, walk)
        assert heard.count("silence ask=3-27") == 1
        walk.go(1)
        await walk.keep(server)
        await adopted(runs, walk)
    rungs = ["d1-3-0", "d1-4-2", "d1-8-3", "d1-16-3", "d1-24-1", "d1-26-0"]
    assert blobs_of(asked) == [*rungs, "d1-27-0"]


async def test_another_answer_than_the_asked_is_passed_over(mosquitto, tmp_path, heard) -> None:
    walk = Walk().go(3)
    await first_model(mosquitto, tmp_path, walk)
    walk.go(24)

    def other(ask: Question) -> bytes:
        return told(walk, Question(ask.epoch, ask.first, ask.last - 1))

    async with (
        answering(mosquitto, other) as asks,
        server_side(mosquitto) as server,
        there(mosquitto, tmp_path, silence_s=0.2) as running,
    ):
        await walk.keep(server)
        await adopted(running, walk)
    assert len(asks) == 1
    assert heard.count("way=ladder bytes=") == 1


async def test_a_wrong_answer_counts_as_none_and_the_ladder_is_taken(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(3)
    await first_model(mosquitto, tmp_path, walk)
    asked.clear()
    walk.go(24)
    answers = [b"no diff", walk.diff(4, 27)]
    for answer in answers:

        def lie(ask: Question, answer: bytes = answer) -> bytes:
            return encode_reply(Reply(ask.epoch, ask.first, ask.last, answer))

        async with (
            answering(mosquitto, lie) as asks,
            server_side(mosquitto) as server,
            there(mosquitto, tmp_path) as running,
        ):
            await walk.keep(server)
            await adopted(running, walk)
            assert len(asks) == 1
        assert heard.count("way=ask error=") == 1
        heard.lines.clear()
        walk.go(24)
    assert {blob[0] for blob in blobs_of(asked)} == {"d"}


async def test_who_was_cut_off_while_it_waited_for_an_answer_takes_the_ladder_next(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(3)
    await first_model(mosquitto, tmp_path, walk)
    asked.clear()
    walk.go(24)
    async with there(mosquitto, tmp_path, silence_s=600) as running:
        async with (
            answering(mosquitto, lambda _: b"not yet") as asks,
            server_side(mosquitto) as server,
        ):
            await walk.keep(server)
            await eventually(lambda: bool(asks), "it asks")
        mosquitto.stop()
        mosquitto.start()
        async with server_side(mosquitto) as server:
            await walk.keep(server)
            await adopted(running, walk)
    assert heard.count("way=ladder") == 1


class Quick:
    """Windows that hold whatever is asked for, while something newer is offered after each."""

    costs = Packets(chunk=100, ask=1000)

    def __init__(self, walk: Walk) -> None:
        self.chunks = dict(walk.chunks({**walk.diffs(), "k1-80": walk.keyframe(8)}))
        self.windows = 0

    async def fetch(self, _session: object, pieces: Any, _fits: object) -> dict[Any, bytes]:
        self.windows += 1
        return {piece: self.chunks[TOPICS.chunk(*piece)] for piece in pieces}


async def test_what_is_complete_is_taken_though_something_newer_is_offered_meanwhile(
    tmp_path,
) -> None:
    walk = Walk().go(6)
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        spool.save(
            manifest=encode_manifest(walk.manifest()),
            q=walk.points[6].tobytes(),
            exponents=bytes(walk.exponents),
        )
        walk.go(2)
        quick: Any = Quick(walk)
        session: Any = None

        offered, before = walk.manifest(), walk.manifest(6)
        newer, walker = walk.go(1).manifest(), Walker(quick, spool)

        def wanted() -> Manifest:
            return newer if quick.windows else offered

        caught = await walker.catch_up(session, offered, walk.spec, wanted)
        assert caught is not None
        assert caught.values["params"] == walk.params(8).tobytes()
        newer = before  # held at what is here
        assert await walker.catch_up(session, offered, walk.spec, wanted) is None
    assert quick.windows == 1


async def test_who_is_held_at_what_it_has_while_it_walks_stays_there(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(4)
    await first_model(mosquitto, tmp_path, walk)
    held = walk.manifest()
    walk.go(1)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path, silence_s=5) as runs:
        asked.clear()
        await walk.keep(server, without=("d1-4-0",))
        await eventually(lambda: bool(asked), "it has begun")
        await server.keep(TOPICS.pin(DEVICE), encode_manifest(held))
        await turns(server, heard)
        await server.keep_chunks(walk.chunks({"d1-4-0": walk.diffs()["d1-4-0"]}))
        await turns(server, heard)
        assert runs.agent.version == 40
        assert heard.count("caught_up") == 1
        await server.keep(TOPICS.pin(DEVICE), b"")
        await adopted(runs, walk)


async def test_a_keyframe_that_comes_more_slowly_than_models_are_published_is_still_adopted(
    mosquitto, tmp_path, monkeypatch
) -> None:
    walk = Walk(chunk_bytes=64).go(4)
    first, real = walk.manifest(), Windows.fetch
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as runs:

        async def fetch(self: Windows, session: Any, pieces: Any, fits: Any) -> Any:
            found = await real(self, session, pieces, fits)
            if walk.serial < 12:
                await walk.go(1).keep(server)
                wanted = runs.agent._link._fetcher._wanted_now
                newest = walk.manifest()
                await eventually(lambda: wanted() == newest, "it has heard")
            return found

        monkeypatch.setattr(Windows, "fetch", fetch)
        await server.keep_spec(walk.spec)
        await walk.keep(server)
        await eventually(lambda: runs.agent.version is not None, "one is adopted")
        assert runs.agent.version == first.version
        await eventually(lambda: runs.agent.version == 120, "it goes on by diffs")


# -- links that end, and what is wrong ---------------------------------------------------------


async def test_a_half_fetched_ladder_survives_a_lost_broker_and_a_restart(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk(moves=40, chunk_bytes=64).go(4)
    await first_model(mosquitto, tmp_path, walk)
    walk.go(6)  # 4 to 8 and 8 to 10
    first, second = walk.chunks({n: walk.diffs()[n] for n in ("d1-4-2", "d1-8-1")}), []
    first, second = first[:2] + first[3:4], first[2:3] + first[4:]
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path, silence_s=0.2) as runs:
        await server.keep_chunks(first)
        await server.keep_manifest(walk.manifest())
        kept = runs.spool
        await eventually(
            lambda: sum(map(len, kept.all_chunks().values())) == len(first), "some are kept"
        )
    mosquitto.stop()
    asked.clear()
    mosquitto.start()  # it has forgotten everything
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        await server.keep_spec(walk.spec)
        await server.keep_chunks(second)
        await server.keep_manifest(walk.manifest())
        await adopted(running, walk)
        assert running.spool.all_chunks() == {}
    assert set(asked) == {topic for topic, _ in second}
    assert heard.count("version=100 way=ladder") == 1


async def test_a_diff_that_leads_elsewhere_is_thrown_away_for_the_keyframe(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(4)
    await first_model(mosquitto, tmp_path, walk)
    asked.clear()
    walk.go(1)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        await walk.keep(server, d1_4_0=walk.diff(3, 4))
        await adopted(running, walk)
        assert heard.count("model_refused version=50 way=ladder") == 1
        walk.go(1)
        await walk.keep(server)
        await adopted(running, walk)
    assert blobs_of(asked) == ["d1-4-0", "k1-50", "d1-5-0"]


async def test_what_came_of_a_keyframe_survives_a_wrong_ladder(mosquitto, tmp_path, asked) -> None:
    walk = Walk(chunk_bytes=64).go(4)
    await first_model(mosquitto, tmp_path, walk)
    walk.go(1)
    chunks = [piece for _, piece in walk.chunks({"k1-50": walk.keyframe(5)})]
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        spool.keep_pieces({("k1-50", i): chunks[i] for i in range(3)}, of=["k1-50"])
    asked.clear()
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        await walk.keep(server, without=("k1-50",), d1_4_0=walk.diff(3, 4))
        await eventually(lambda: len(asked) > 1, "it turns to the keyframe")
        assert {blob: len(each) for blob, each in running.spool.all_chunks().items()} == {
            "k1-50": 3
        }
        await server.keep_chunks(walk.chunks({"k1-50": walk.keyframe(5)}))
        await adopted(running, walk)
    assert pieces_of(asked)[:2] == ["d1-4-0/0", "k1-50/3"]


async def test_a_wrong_keyframe_is_refused_and_not_fetched_over_and_over(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(4)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path, silence_s=600) as runs:
        await server.keep_spec(walk.spec)
        await walk.keep(server, k1_40=bytes(len(walk.keyframe(4))))
        await eventually(lambda: heard.count("model_refused version=40 error=") == 1, "refused")
        await turns(server, heard)
        assert runs.spool.load("params") is None
        await walk.go(1).keep(server)
        await adopted(runs, walk)
    assert blobs_of(asked) == ["k1-40", "k1-50"]


async def test_a_diff_that_was_swept_makes_the_device_take_the_keyframe(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(4)
    await first_model(mosquitto, tmp_path, walk)
    asked.clear()
    walk.go(1)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path, silence_s=0.2) as runs:
        await walk.keep(server, without=("d1-4-0",))
        await adopted(runs, walk)
    assert blobs_of(asked) == ["d1-4-0", "k1-50"]
    assert heard.count("silence blob=d1-4-0: reading the manifest again") == 1


async def test_when_nothing_comes_at_all_the_cheapest_way_is_tried_again(
    mosquitto, tmp_path, asked, heard
) -> None:
    walk = Walk().go(4)
    await first_model(mosquitto, tmp_path, walk)
    walk.go(1)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path, silence_s=0.1) as runs:
        await walk.keep(server, without=("d1-4-0", "k1-50"))
        await eventually(lambda: heard.count("silence blob=k1-50") >= 1, "nothing comes")
        await server.keep_chunks(walk.chunks({"d1-4-0": walk.diffs()["d1-4-0"]}))
        await adopted(runs, walk)
    assert heard.count("version=50 way=ladder") == 1


async def test_a_model_that_has_left_the_lattice_takes_no_room_for_a_place_there(
    mosquitto, tmp_path
) -> None:
    walk = Walk(lattice_spec(init=None)).go(2)
    plain = msgspec.structs.replace(walk.spec, publish=PublishOptions(), needs=())
    whole = walk.params(1)
    raw, digest = whole.tobytes(), walk.spec.params.digest
    off = Manifest(
        Epoch(1),
        ModelVersion(30),
        model_digest(digest, whole),
        digest,
        0,
        "k1-30",
        sha256(raw).digest(),
        len(raw),
        walk.chunk_bytes,
    )
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        await server.keep_spec(walk.spec)
        await walk.keep(server, origin=True)
        await adopted(running, walk)
        assert running.spool.bytes_of("origin") == len(raw)
        await server.keep_spec(plain)
        await server.keep_chunks(walk.chunks({"k1-30": raw}))
        await server.keep_manifest(off)
        await eventually(lambda: running.agent.version == 30, "it is adopted")
        left = {name: running.spool.bytes_of(name) for name in ("q", "exponents", "origin")}
        assert left == {"q": 0, "exponents": 0, "origin": 0}


async def test_an_older_model_and_another_epoch_take_a_keyframe(mosquitto, tmp_path, asked) -> None:
    walk, anew = Walk().go(4), Walk(epoch=2).go(6)
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        await server.keep_spec(walk.spec)
        await walk.keep(server)
        await adopted(running, walk)
        older = walk.manifest(2)
        await server.keep_chunks(walk.chunks({older.blob: walk.keyframe(2)}))
        await server.keep(TOPICS.pin(DEVICE), encode_manifest(older))
        await adopted(running, walk, 2)
        await server.keep(TOPICS.pin(DEVICE), b"")
        await adopted(running, walk)  # by a rung again
        await anew.keep(server)
        await adopted(running, anew)
    assert blobs_of(asked) == ["k1-40", "k1-20", "d1-2-1", "k2-60"]


async def test_a_place_that_is_not_whole_is_begun_anew(mosquitto, tmp_path, asked) -> None:
    walk = Walk().go(4)
    await first_model(mosquitto, tmp_path, walk)
    asked.clear()
    async with server_side(mosquitto) as server, there(mosquitto, tmp_path) as running:
        running.spool.save(q=b"short")
        await walk.go(1).keep(server)
        await adopted(running, walk)
    assert blobs_of(asked) == ["k1-50"]


class Mute:
    """A connection over which nothing comes, not even what is read again."""

    def __init__(self) -> None:
        self.asked_again = asyncio.Event()

    async def subscribe(self, filters: Any, *, qos: int) -> None:
        if TOPICS.model in filters:
            self.asked_again.set()

    async def unsubscribe(self, filters: Any) -> None:
        """Nothing is left of it."""


async def test_who_reads_the_manifest_again_has_not_caught_up(tmp_path) -> None:
    walk, mute = Walk().go(1), Mute()
    settings = AgentSettings(device=DEVICE, task="pumps", trainer="not:used", silence_s=0.01)
    session: Any = mute
    with closing(Spool(tmp_path / "spool.sqlite")) as spool:
        spool.save(spec=spec_to_json(walk.spec))
        fetcher = Fetcher(settings, TOPICS, DEVICE, spool, on_news=AsyncMock())
        fetcher.hear("model", encode_manifest(walk.manifest()))
        running = asyncio.create_task(fetcher.run(session))
        await mute.asked_again.wait()
        assert not fetcher.caught_up
        fetcher.hear("model", encode_manifest(walk.manifest()))
        assert not fetcher.caught_up, "now it is fetched again"
        await end([running])
