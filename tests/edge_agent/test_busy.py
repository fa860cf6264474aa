"""A server that asks for less, and what a device makes of it."""

import msgspec

from schemas.watch import Busy
from tests.edge_agent.played_server import (
    TOPICS,
    Heard,
    Model,
    ServerSide,
    device,
    eventually,
    server_side,
    turns,
)


def busy(pause_s: float) -> bytes:
    return msgspec.json.encode(Busy("slow", pause_s, 1))


def heard_updates(server: ServerSide) -> int:
    found = 0
    while not server._inbox.empty():
        topic, _ = server._inbox.get_nowait()
        found += "/up/" in topic
    return found


async def open_and_quiet(server: ServerSide, heard: Heard, there, pause_s: float) -> None:
    """One update is made and was sent at least once; then the server is busy."""
    await server.keep_spec()
    await server.keep_model(Model(1))
    await server.update()
    await server.keep(TOPICS.busy, busy(pause_s))
    await eventually(lambda: heard.count("server_busy") == 1, "it hears that")
    await turns(server, heard)  # what was on its way has come
    heard_updates(server)


async def test_while_the_server_is_busy_nothing_is_sent_and_nothing_again(
    broker, tmp_path, heard
) -> None:
    async with (
        server_side(broker) as server,
        device(broker, tmp_path, resend_s=0.01) as there,
    ):
        await open_and_quiet(server, heard, there, 3600)
        await server.keep_model(Model(2))
        await eventually(lambda: there.created == [1, 2], "training goes on")
        await turns(server, heard)
        assert heard_updates(server) == 0
        assert there.spool.is_unsent(there.spool.boot, 2)
        await server.keep(TOPICS.busy, b"")
        await server.update_from(Model(2))


async def test_one_update_is_tried_after_each_pause_and_every_one_has_its_turn(
    broker, tmp_path, heard
) -> None:
    """A bridge that died while it was busy does not silence a fleet for ever."""
    async with (
        server_side(broker) as server,
        device(broker, tmp_path, resend_s=0.01) as there,
    ):
        await open_and_quiet(server, heard, there, 0.2)
        await server.keep_model(Model(2))
        tried = [(await server.update()).seq for _ in range(8)]
    assert set(tried) == {1, 2}


async def test_a_device_that_connects_while_the_server_is_busy_hears_it(
    broker, tmp_path, heard
) -> None:
    async with server_side(broker) as server:
        await server.keep(TOPICS.busy, busy(3600))
        async with device(broker, tmp_path) as there:
            await eventually(lambda: heard.count("server_busy") == 1, "it hears that")
            await server.keep_spec()
            await server.keep_model(Model(1))
            await eventually(lambda: there.created == [1], "it trains")
            await turns(server, heard)
            assert heard_updates(server) == 0
        async with device(broker, tmp_path) as there:
            await eventually(lambda: heard.count("server_busy") == 2, "and after a restart")


async def test_busy_ends_with_the_connection_that_told_it(broker, tmp_path, heard) -> None:
    async with device(broker, tmp_path, resend_s=0.01) as there:
        async with server_side(broker) as server:
            await open_and_quiet(server, heard, there, 3600)
        broker.stop()
        await eventually(lambda: not there.agent.online, "the device notices")
        broker.start()
        async with server_side(broker) as server:
            await server.keep(TOPICS.busy, b"")  # if the broker has remembered it
            await server.update()


GARBAGE = (
    b"\xff",
    b"{}",
    b'{"why": "slo\xf7", "pause_s": 1.0, "at_ms": 1}',
    b'{"why": "slow", "pause_s": 1e9, "at_ms": 1}',
    b'{"why": 1, "pause_s": 1.0, "at_ms": 1}',
)


async def test_a_busy_that_cannot_be_read_changes_nothing(mosquitto, tmp_path, heard) -> None:
    async def say_garbage() -> None:
        for number, garbage in enumerate(GARBAGE, heard.count("ignored topic=") + 1):
            await server.keep(TOPICS.busy, garbage)
            await eventually(
                lambda n=number: heard.count("ignored topic=") == n, "each of them is told"
            )

    async with (
        server_side(mosquitto) as server,
        device(mosquitto, tmp_path, resend_s=0.01) as there,
    ):
        await say_garbage()
        await open_and_quiet(server, heard, there, 3600)
        await say_garbage()
        await turns(server, heard)
        assert heard_updates(server) == 0
