"""One connection at a time, against real brokers."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import aiomqtt
import pytest
import servers

from mqtt_session.backoff import Backoff
from mqtt_session.session import Inbound, LinkError, Session, Will, connect, keep_connected
from mqtt_session.settings import MqttSettings

BROKERS: Final[dict[str, Callable[..., AbstractContextManager[servers.Server]]]] = {
    "lab": servers.lab_broker,
    "mosquitto": servers.mosquitto,
}


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[servers.Server]:
    with BROKERS[request.param](tmp_path) as server:
        yield server


def to(port: int, *, timeout_s: float = 5) -> MqttSettings:
    return MqttSettings(mqtt_port=port, mqtt_connect_timeout_s=timeout_s)


@asynccontextmanager
async def session_at(
    broker: servers.Server, name: str = "me", *, clean: bool = True, manual_ack: bool = False
) -> AsyncIterator[Session]:
    door = connect(to(broker.port), client_id=name, clean=clean, manual_ack=manual_ack)
    async with asyncio.timeout(20), door as session:
        yield session


async def receive(session: Session, count: int) -> list[Inbound]:
    """Take batches until so many messages have come."""
    found: list[Inbound] = []
    while len(found) < count:
        batch = await session.receive()
        assert batch
        found += batch
    return found


def payloads(messages: list[Inbound]) -> list[bytes]:
    return [message.payload for message in messages]


async def test_messages_come_in_batches_and_in_order(broker) -> None:
    sent = [b"%d" % number for number in range(300)]
    async with session_at(broker) as session, session_at(broker, "you") as other:
        await session.subscribe(["t/+"], qos=1)
        for payload in sent:
            await other.publish("t/x", payload)
        await session.publish("t/last", b"last")  # all others are here when this one is
        got = await receive(session, 301)
    assert payloads(got) == [*sent, b"last"]
    assert {message.topic for message in got} == {"t/x", "t/last"}
    assert {(message.qos, message.retain) for message in got} == {(1, False)}


async def test_many_messages_are_one_batch(broker) -> None:
    async with session_at(broker) as session:
        await session.subscribe(["t"], qos=1)
        for number in range(15):
            await session.publish("t", b"%d" % number)
        while len(session._client.inbox) < 15:
            await asyncio.sleep(0)
        assert len(await session.receive()) == 15


async def test_a_retained_message_says_that_it_is_one(broker) -> None:
    async with session_at(broker) as session:
        await session.publish("t", b"kept", retain=True)
        await session.subscribe(["t"], qos=1)
        (message,) = await receive(session, 1)
    assert (message.payload, message.retain) == (b"kept", True)


async def test_nothing_comes_after_unsubscribing(broker) -> None:
    async with session_at(broker) as session:
        await session.subscribe(["a", "b", "c"], qos=1)
        await session.unsubscribe(["a", "b"])
        for topic in ("a", "b", "c"):
            await session.publish(topic, topic.encode())
        assert payloads(await receive(session, 1)) == [b"c"]


async def test_what_was_not_acknowledged_comes_again_to_a_new_session(broker) -> None:
    async with session_at(broker, clean=False, manual_ack=True) as session:
        await session.subscribe(["t"], qos=1)
        for number in range(6):
            await session.publish("t", b"%d" % number)
        got = await receive(session, 6)
        session.acknowledge(got[:2])
        await session.publish("t", b"after the acknowledgement, on the same link")
    async with session_at(broker, clean=False, manual_ack=True) as session:
        again = await receive(session, 5)
        session.acknowledge(again)
        await session.publish("t", b"last")
        session.acknowledge(await receive(session, 1))
    assert payloads(again)[:4] == [b"2", b"3", b"4", b"5"]
    async with session_at(broker, clean=False, manual_ack=True) as session:
        await session.publish("t", b"new")
        assert payloads(await receive(session, 1)) == [b"new"], "all others are settled"


async def test_a_lost_link_is_told_to_whoever_receives(broker) -> None:
    async with session_at(broker) as session:
        await session.subscribe(["t"], qos=1)
        waiting = asyncio.ensure_future(session.receive())
        await asyncio.sleep(0)
        broker.kill()
        with pytest.raises(LinkError):
            await waiting
        with pytest.raises(LinkError):
            await session.receive()
        with pytest.raises(LinkError):
            await session.publish("t", b"never")


async def test_what_came_before_the_link_was_lost_is_still_handed_over(broker) -> None:
    async with session_at(broker) as session:
        await session.subscribe(["t"], qos=1)
        await session.publish("t", b"one")
        while not session._client.inbox:
            await asyncio.sleep(0)
        broker.kill()
        while not session._client.gone.done():
            await asyncio.sleep(0.001)
        assert payloads(await session.receive()) == [b"one"]
        with pytest.raises(LinkError):
            await session.receive()


async def test_the_will_is_said_when_the_link_breaks(broker) -> None:
    async with session_at(broker, "you") as other:
        await other.subscribe(["state/me"], qos=1)
        will = Will("state/me", b"offline")
        with suppress(LinkError):
            async with connect(to(broker.port), client_id="me", clean=True, will=will) as session:
                await session.publish("x", b"")
                session._client._client._sock_close()  # no DISCONNECT
                assert payloads(await receive(other, 1)) == [b"offline"]


async def test_a_refused_connection_is_a_link_error() -> None:
    with pytest.raises(LinkError):
        async with connect(to(servers.free_port()), client_id="me", clean=True):
            pytest.fail("nobody listens there")


async def test_an_end_before_connack_is_told_at_once_and_not_after_the_timeout() -> None:
    async def slam(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server = await asyncio.start_server(slam, servers.HOST, 0)
    port = server.sockets[0].getsockname()[1]
    async with server, asyncio.timeout(60):
        with pytest.raises(LinkError):
            async with connect(to(port, timeout_s=600), client_id="me", clean=True):
                pytest.fail("nobody said CONNACK")


@asynccontextmanager
async def mute_server() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A server that accepts and says nothing: its port, and whether the client has left."""
    left = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):
            await reader.read()
            left.set()
        writer.transport.abort()

    server = await asyncio.start_server(say_nothing, servers.HOST, 0)
    async with server:
        yield server.sockets[0].getsockname()[1], left


async def test_silence_instead_of_connack_is_told_after_the_timeout() -> None:
    async with mute_server() as (port, _):
        with pytest.raises(LinkError):
            async with connect(to(port, timeout_s=0.2), client_id="me", clean=True):
                pytest.fail("nobody said CONNACK")


async def test_no_socket_is_left_open_after_a_silence() -> None:
    async with mute_server() as (port, left):
        with suppress(LinkError):
            async with connect(to(port, timeout_s=0.2), client_id="me", clean=True):
                pytest.fail("nobody said CONNACK")
        async with asyncio.timeout(1):
            await left.wait()


async def test_a_session_is_begun_again_after_its_link_has_ended(broker) -> None:
    lives: asyncio.Queue[int] = asyncio.Queue()
    count = 0

    async def use(session: Session) -> None:
        nonlocal count
        count += 1
        lives.put_nowait(count)
        await session.receive()

    def door() -> AbstractContextManager[Session]:
        return connect(to(broker.port), client_id="me", clean=True)

    backoff = Backoff(0.01, 0.05)
    running = asyncio.ensure_future(
        keep_connected(door, use, rng=random.Random(1), backoff=backoff)
    )
    async with asyncio.timeout(20):
        assert await lives.get() == 1
        broker.kill()
        broker.start()
        assert await lives.get() == 2
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


async def test_a_failure_that_is_not_the_links_is_passed_on(broker) -> None:
    async def use(_session: Session) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await keep_connected(
            lambda: connect(to(broker.port), client_id="me", clean=True),
            use,
            rng=random.Random(1),
            backoff=Backoff(),
        )


def test_a_link_error_is_aiomqtts_own() -> None:
    assert LinkError is aiomqtt.MqttError


async def test_a_socket_that_closes_with_something_to_write_is_no_complaint(broker) -> None:
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    async with connect(to(broker.port), client_id="me", clean=True) as session:
        publishing = asyncio.ensure_future(session.publish("x", b"1"))
        await asyncio.sleep(0)  # paho has asked the loop to watch its socket
        session._client._client._sock_close()
        for _ in range(3):
            await asyncio.sleep(0)
        publishing.cancel()
    assert complaints == []


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x30\x05\x00\x03t\xe4x",  # PUBLISH at a topic that is not UTF-8
        b"\x30\x02\x00\x09",  # PUBLISH whose topic is longer than it
        b"\x90\x00",  # SUBACK of nothing
        b"\x40\x01\x00",  # PUBACK of one byte
        b"\xf0\x00",  # no packet at all
        b"\x30\xff\xff\xff\xff\xff",  # a length of five bytes
    ],
)
async def test_bytes_that_are_no_mqtt_end_the_connection_and_nothing_else(nonsense: bytes) -> None:
    async def broker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"\x20\x02\x00\x00" + nonsense)
        await reader.read(1000)
        writer.close()

    server = await asyncio.start_server(broker, servers.HOST, 0)
    port = server.sockets[0].getsockname()[1]

    async def listen() -> None:
        async with connect(to(port), client_id="me", clean=True) as session:
            while True:
                await session.publish("t", b"", qos=0)
                await session.receive()

    try:
        with pytest.raises(LinkError):
            await asyncio.wait_for(listen(), 20)
    finally:
        server.close()


async def test_small_packets_leave_at_once(broker) -> None:
    async with session_at(broker) as session:
        sock = session._client._client.socket()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
