"""What fedmq asks of an MQTT broker: the same for the lab broker and for a real mosquitto.

Nothing here waits for a while. "Nothing more came" is known from a PINGRESP, which overtakes
nothing; "the broker has noticed" from its closing of the connection.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Self

import aiomqtt
import pytest
from servers import Server

from broker.lab.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    Reader,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    encode,
)

TIMEOUT_S = 10

_numbers = count(1)


@pytest.fixture
def name() -> str:
    """A client id and a topic level that no other test has."""
    return f"t{next(_numbers)}"


class Raw:
    """A client that does exactly what a test tells it, and nothing else."""

    def __init__(self, server: Server) -> None:
        self._socket = socket.create_connection((server.host, server.port), timeout=TIMEOUT_S)
        self._reader = Reader(max_packet=1 << 20)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._arrived: list[Packet] = []
        self._messages: list[Publish] = []
        self.session_present = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._socket.close()

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def send(self, *packets: Packet) -> None:
        self.write(b"".join(map(encode, packets)))

    def receive(self) -> Packet:
        """The next packet; EOFError when the broker has closed."""
        while not self._arrived:
            if not (data := self._socket.recv(1 << 16)):
                raise EOFError
            self._reader.feed(data)
            self._arrived += self._reader
        return self._arrived.pop(0)

    def until(self, wanted: Packet) -> None:
        """Read up to this packet; messages that come before it are kept for `messages`."""
        while (packet := self.receive()) != wanted or type(packet) is not type(wanted):
            assert isinstance(packet, Publish), f"{packet} instead of {wanted}"
            self._messages.append(packet)

    def subscribe(self, *filters: str, qos: int = 1) -> list[Publish]:
        """Subscribe; whatever was retained there."""
        self.send(Subscribe(1, tuple((text, qos) for text in filters)))
        self.until(SubAck(1, (qos,) * len(filters)))
        return self.messages()

    def unsubscribe(self, *filters: str) -> None:
        self.send(Unsubscribe(2, filters))
        self.until(UnsubAck(2))

    def publish(self, topic: str, *payloads: bytes, retain: bool = False) -> None:
        """Publish at QoS 1, one after another's acknowledgement."""
        for packet_id, payload in enumerate(payloads, 1):
            self.send(Publish(topic, payload, 1, retain, packet_id=packet_id))
            self.until(PubAck(packet_id))

    def messages(self) -> list[Publish]:
        """All that have come by now, unacknowledged."""
        self.send(PingReq())
        self.until(PingResp())
        found, self._messages = self._messages, []
        return found

    def acknowledge(self, *messages: Publish) -> None:
        self.send(*[PubAck(message.packet_id) for message in messages if message.qos])

    def drain(self) -> list[Publish]:
        """Acknowledge until nothing more comes."""
        found = fresh = self.messages()
        while fresh:
            self.acknowledge(*fresh)
            fresh = self.messages()
            found = found + fresh
        return found

    def leave(self) -> None:
        """Say goodbye, and wait until the broker has closed."""
        self.send(Disconnect())
        self.wait_closed()

    def cut(self) -> None:
        """End without a goodbye, and wait until the broker has closed."""
        self._socket.shutdown(socket.SHUT_WR)
        self.wait_closed()

    def wait_closed(self) -> None:
        try:
            while True:
                self.receive()
        except (EOFError, ConnectionError):
            pass


@contextmanager
def client(
    server: Server, name: str, *, clean: bool = True, alive: int = 0, will: Publish | None = None
) -> Iterator[Raw]:
    with Raw(server) as raw:
        raw.send(Connect(name, clean, alive, will))
        ack = raw.receive()
        assert isinstance(ack, ConnAck)
        assert ack.code == 0
        raw.session_present = ack.session_present
        yield raw


def payloads(messages) -> list[bytes]:
    return [message.payload for message in messages]


def numbered(amount: int) -> list[bytes]:
    return [b"%d" % index for index in range(amount)]


def session(server: Server, name: str, *, manual_ack: bool = False) -> aiomqtt.Client:
    """An aiomqtt client with a kept session; a new one for every connection."""
    connection = aiomqtt.Client(
        server.host, server.port, identifier=name, clean_session=False, timeout=TIMEOUT_S
    )
    connection._client.manual_ack_set(manual_ack)
    return connection


async def take(connection: aiomqtt.Client, amount: int) -> list[aiomqtt.Message]:
    found: list[aiomqtt.Message] = []
    async with asyncio.timeout(TIMEOUT_S):
        async for message in connection.messages:
            found.append(message)
            if len(found) == amount:
                break
    return found


async def settle(connection: aiomqtt.Client) -> None:
    """Be sure that the broker has read what was sent: a PUBACK comes after everything before it."""
    await connection.publish("settle", qos=1)


# Delivery


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_message_reaches_its_subscriber(broker, name, qos):
    async with aiomqtt.Client(broker.host, broker.port) as connection:
        await connection.subscribe(f"{name}/+", qos=1)
        await connection.publish(f"{name}/a", b"payload", qos=qos)
        (message,) = await take(connection, 1)
    assert (str(message.topic), message.payload) == (f"{name}/a", b"payload")
    assert (message.qos, message.retain) == (qos, False)


def test_messages_of_one_publisher_keep_their_order(broker, name):
    with client(broker, name) as subscriber, client(broker, f"{name}p") as publisher:
        subscriber.subscribe(f"{name}/#")
        for index in range(100):
            publisher.send(Publish(f"{name}/{index % 7}", b"%d" % index, 1, packet_id=index + 1))
        for _ in range(100):
            assert isinstance(publisher.receive(), PubAck)
        assert payloads(subscriber.drain()) == numbered(100)


def test_overlapping_subscriptions_deliver_once_at_the_highest_quality(broker, name):
    with client(broker, name) as both:
        both.subscribe(f"{name}/#", qos=0)
        both.subscribe(f"{name}/+", qos=1)
        both.publish(f"{name}/a", b"x")
        assert [message.qos for message in both.messages()] == [1]


def test_nothing_comes_after_unsubscribe(broker, name):
    with client(broker, name) as subscriber, client(broker, f"{name}p") as publisher:
        subscriber.subscribe(name)
        publisher.publish(name, b"before")
        assert payloads(subscriber.drain()) == [b"before"]
        subscriber.unsubscribe(name)
        publisher.publish(name, b"x")
        assert subscriber.messages() == []


def test_many_clients_hear_one_and_one_hears_many(broker, name):
    with ExitStack() as stack:
        crowd = [stack.enter_context(client(broker, f"{name}c{index}")) for index in range(100)]
        for member in crowd:
            member.subscribe(f"{name}/all")
        crowd[0].publish(f"{name}/all", b"hello")
        assert all(payloads(member.drain()) == [b"hello"] for member in crowd)
        crowd[0].subscribe(f"{name}/up/+")
        for index, member in enumerate(crowd[1:]):
            member.publish(f"{name}/up/{index}", b"x")
        assert len(crowd[0].drain()) == 99


# Sessions


async def test_unacknowledged_messages_come_again_to_a_resumed_session(broker, name):
    async with session(broker, name, manual_ack=True) as first:
        await first.subscribe(f"{name}/up", qos=1)
        for payload in numbered(5):
            await first.publish(f"{name}/up", payload, qos=1)
        seen = await take(first, 5)
        first._client.ack(seen[0].mid, 1)
        first._client.ack(seen[2].mid, 1)
        await settle(first)
    async with session(broker, name) as second:
        again = await take(second, 3)
        await settle(second)
    assert payloads(again) == [b"1", b"3", b"4"]
    with client(broker, name, clean=False) as third:
        assert third.messages() == []


async def test_a_late_acknowledgement_is_enough(broker, name):
    async with session(broker, name, manual_ack=True) as connection:
        await connection.subscribe(f"{name}/up", qos=1)
        for payload in numbered(10):
            await connection.publish(f"{name}/up", payload, qos=1)
        for message in reversed(await take(connection, 10)):
            connection._client.ack(message.mid, 1)
        await connection.publish(f"{name}/up", b"after", qos=1)
        (after,) = await take(connection, 1)
        connection._client.ack(after.mid, 1)
        await settle(connection)
    with client(broker, name, clean=False) as resumed:
        assert resumed.session_present
        assert resumed.messages() == []


def test_what_comes_again_is_a_duplicate_under_its_old_id(broker, name):
    with client(broker, f"{name}p") as publisher:
        with client(broker, name, clean=False) as subscriber:
            subscriber.subscribe(name)
            publisher.publish(name, b"0", b"1", b"2")
            seen = subscriber.messages()
            subscriber.acknowledge(seen[1])
            subscriber.messages()
            subscriber.cut()
        publisher.publish(name, b"3")
        with client(broker, name, clean=False) as subscriber:
            again = subscriber.messages()
            subscriber.acknowledge(*again)
            subscriber.leave()
    assert [(m.payload, m.dup) for m in again] == [
        (b"0", True), (b"2", True), (b"3", False),
    ]  # fmt: skip
    assert [m.packet_id for m in again[:2]] == [seen[0].packet_id, seen[2].packet_id]


def test_a_window_of_twenty_waits_for_an_acknowledgement(broker, name):
    """Only its first filling is a contract: mosquitto 2.0.11 sends up to 20 more at every ack."""
    with client(broker, name) as subscriber, client(broker, f"{name}p") as publisher:
        subscriber.subscribe(name)
        publisher.publish(name, *numbered(30))
        seen = subscriber.messages()
        assert payloads(seen) == numbered(20)
        subscriber.acknowledge(seen[5], seen[0])
        fresh = subscriber.messages()
        assert len(fresh) >= 2
        assert payloads(fresh) == numbered(30)[20 : 20 + len(fresh)]


def test_a_kept_session_hears_what_it_missed(broker, name):
    with client(broker, name, clean=False) as subscriber:
        assert not subscriber.session_present
        subscriber.subscribe(f"{name}/#")
        subscriber.leave()
    with client(broker, f"{name}p") as publisher:
        publisher.publish(f"{name}/a", *numbered(50))
    with client(broker, name, clean=False) as subscriber:
        assert subscriber.session_present
        assert payloads(subscriber.drain()) == numbered(50)


def test_the_queue_of_an_absent_client_keeps_the_oldest_thousand(broker, name):
    with client(broker, name, clean=False) as subscriber:
        subscriber.subscribe(name)
        subscriber.leave()
    with client(broker, f"{name}p") as publisher:
        publisher.publish(name, *numbered(1100))
    with client(broker, name, clean=False) as subscriber:
        assert payloads(subscriber.drain()) == numbered(1000)


def test_a_clean_session_forgets_everything(broker, name):
    with client(broker, f"{name}p") as publisher:
        with client(broker, name, clean=False) as kept:
            kept.subscribe(name)
            publisher.publish(name, b"unacknowledged")
            kept.messages()
            kept.leave()
        publisher.publish(name, b"queued")
        with client(broker, name) as clean:
            assert not clean.session_present
            publisher.publish(name, b"to nobody")
            assert clean.messages() == []
            clean.leave()
        with client(broker, name, clean=False) as kept:
            assert not kept.session_present
            publisher.publish(name, b"to nobody")
            assert kept.messages() == []


def test_a_second_connection_takes_the_session_over(broker, name):
    with client(broker, name, clean=False) as old, client(broker, f"{name}p") as publisher:
        old.subscribe(name)
        publisher.publish(name, b"0")
        with client(broker, name, clean=False) as new:
            old.wait_closed()
            assert new.session_present
            publisher.publish(name, b"1")
            assert payloads(new.drain()) == [b"0", b"1"]


# Retained messages


def test_a_retained_message_is_set_replaced_and_cleared(broker, name):
    with client(broker, name) as live, client(broker, f"{name}p") as publisher:
        live.subscribe(name)
        for payload, kept in ((b"1", [b"1"]), (b"2", [b"2"]), (b"", [])):
            publisher.publish(name, payload, retain=True)
            (message,) = live.drain()
            assert (message.payload, message.retain) == (payload, False)
            with client(broker, f"{name}later") as later:
                found = later.subscribe(name)
                assert [(m.payload, m.retain) for m in found] == [(text, True) for text in kept]


def test_a_retained_message_comes_again_at_every_subscribe(broker, name):
    with client(broker, name) as connection:
        connection.publish(name, b"x", retain=True)
        for _ in range(3):
            found = connection.subscribe(name)
            connection.acknowledge(*found)
            assert payloads(found) == [b"x"]


MATCHES = [
    ("{}/+", {"{}/a", "{}/b", "{}/", "{}/$c"}),
    ("{}/#", {"{}", "{}/a", "{}/b", "{}/", "{}/$c", "{}/a/x", "{}/a/x/y", "{}/b/x"}),
    ("{}/+/x", {"{}/a/x", "{}/b/x"}),
    ("{}/+/#", {"{}/a", "{}/b", "{}/", "{}/$c", "{}/a/x", "{}/a/x/y", "{}/b/x"}),
    ("+/{}", {"/{}"}),
    ("/+", {"/{}"}),
    ("{}", {"{}"}),
    ("{}/a/#", {"{}/a", "{}/a/x", "{}/a/x/y"}),
    ("$lab/{}/#", {"$lab/{}/a"}),
    ("$lab/{}/+", {"$lab/{}/a"}),
]
EVERY_TOPIC = sorted(set().union(*(topics for _, topics in MATCHES)))


@pytest.mark.parametrize(("pattern", "expected"), MATCHES, ids=[pattern for pattern, _ in MATCHES])
def test_a_filter_finds_the_right_set_retained_and_live(broker, name, pattern, expected):
    topics = [topic.format(name) for topic in EVERY_TOPIC]
    wanted = sorted(topic.format(name) for topic in expected)
    with client(broker, f"{name}p") as publisher, client(broker, name) as subscriber:
        publish_all(publisher, topics, b"x")
        found = subscriber.subscribe(pattern.format(name), qos=0)
        assert sorted(message.topic for message in found) == wanted
        publish_all(publisher, topics, b"")
        assert sorted(message.topic for message in subscriber.messages()) == wanted


def publish_all(publisher: Raw, topics: list[str], payload: bytes) -> None:
    for topic in topics:
        publisher.publish(topic, payload, retain=True)


def test_leading_wildcards_do_not_see_dollar_topics(broker, name):
    with client(broker, name) as subscriber, client(broker, f"{name}p") as publisher:
        subscriber.subscribe(f"+/{name}/#", qos=0)
        publisher.publish(f"$lab/{name}/a", b"hidden", retain=True)
        publisher.publish(f"lab/{name}/a", b"seen")
        assert payloads(subscriber.messages()) == [b"seen"]
        assert subscriber.subscribe(f"+/{name}/+", "+/+/+", qos=0) == []
        publisher.publish(f"$lab/{name}/a", b"", retain=True)


CHUNKS = 2000


@pytest.fixture(scope="module")
def blob(broker) -> Iterator[list[str]]:
    """The topics of many retained chunks; each holds its own topic as payload, and some weight."""
    topics = [f"chunks/blob/{index}" for index in range(CHUNKS)]
    with client(broker, "chunks") as publisher:
        for base in range(0, CHUNKS, 100):
            window = topics[base : base + 100]
            publisher.send(
                *(
                    Publish(topic, topic.encode() + bytes(500), 1, retain=True, packet_id=index)
                    for index, topic in enumerate(window, 1)
                )
            )
            for _ in window:
                assert isinstance(publisher.receive(), PubAck)
    return topics


def test_two_thousand_retained_chunks_come_through_a_wildcard_at_quality_zero(broker, name, blob):
    with client(broker, name) as reader:
        found = reader.subscribe("chunks/blob/+", qos=0)
    assert sorted(message.topic for message in found) == sorted(blob)
    assert all(m.payload == m.topic.encode() + bytes(500) and m.retain for m in found)


def test_two_thousand_retained_chunks_come_in_windows_of_eight_at_quality_one(broker, name, blob):
    found = []
    with client(broker, name) as reader:
        for base in range(0, CHUNKS, 8):
            window = blob[base : base + 8]
            chunks = reader.subscribe(*window)
            reader.acknowledge(*chunks)
            reader.unsubscribe(*window)
            found += chunks
    assert sorted(message.topic for message in found) == sorted(blob)


# Wills, silence, takeover


def test_an_abnormal_end_publishes_the_will(broker, name):
    with client(broker, f"{name}w") as watcher:
        watcher.subscribe(name)
        with client(broker, name, will=Publish(name, b"gone", 1, retain=True)) as mortal:
            mortal.cut()
        assert payloads(watcher.drain()) == [b"gone"]
        assert [message.retain for message in watcher.subscribe(name)] == [True]


def test_a_goodbye_publishes_no_will(broker, name):
    with client(broker, f"{name}w") as watcher:
        watcher.subscribe(name)
        with client(broker, name, will=Publish(name, b"gone", 1)) as mortal:
            mortal.leave()
        assert watcher.messages() == []


def test_a_takeover_publishes_the_will(broker, name):
    with client(broker, f"{name}w") as watcher:
        watcher.subscribe(name)
        with client(broker, name, will=Publish(name, b"gone", 1)) as old, client(broker, name):
            old.wait_closed()
            assert payloads(watcher.drain()) == [b"gone"]


def test_silence_beyond_the_keep_alive_closes_and_publishes_the_will(broker, name):
    with client(broker, f"{name}w") as watcher:
        watcher.subscribe(name)
        with client(broker, name, alive=1, will=Publish(name, b"gone", 1)) as silent:
            silent.wait_closed()
        assert payloads(watcher.drain()) == [b"gone"]


# Bad clients

MALFORMED = {
    "reserved type": b"\xf0\x00",
    "second connect": encode(Connect("again")),
    "wildcard in a topic": encode(Publish("a/#", b"")),
    "wildcard inside a level": encode(Subscribe(1, (("a#", 0),))),
    "empty filter": encode(Subscribe(1, (("", 0),))),
    "flags of subscribe": b"\x80\x06\x00\x01\x00\x01a\x00",
    "quality three": encode(Publish("a", b"", 3, packet_id=1)),
    "topic beyond its packet": b"\x30\x03\x00\x09a",
    "not utf-8": b"\x30\x04\x00\x02\xff\xff",
    "five bytes of length": b"\x30\xff\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_malformed_bytes_close_only_their_client(broker, name, data):
    with client(broker, f"{name}b") as bystander:
        bystander.subscribe(name)
        with client(broker, name) as villain:
            villain.write(data)
            villain.wait_closed()
        bystander.publish(name, b"alive")
        assert payloads(bystander.messages()) == [b"alive"]


def test_an_oversize_packet_closes_only_its_client(broker, name):
    with client(broker, f"{name}b") as bystander:
        bystander.subscribe(name)
        with client(broker, name) as villain:
            villain.write(encode(Publish(name, bytes(300 * 1024)))[:1000])
            villain.wait_closed()
        bystander.publish(name, bytes(200 * 1024))
        assert [len(payload) for payload in payloads(bystander.messages())] == [200 * 1024]


def test_bytes_that_are_not_mqtt_close_the_connection(broker):
    with Raw(broker) as villain:
        villain.write(b"GET / HTTP/1.1\r\n\r\n")
        villain.wait_closed()


def test_a_kept_session_without_a_client_id_is_refused(broker):
    with Raw(broker) as nameless:
        nameless.send(Connect("", clean_session=False))
        assert nameless.receive() == ConnAck(session_present=False, code=2)
        nameless.wait_closed()


def test_a_connection_torn_in_the_midst_of_a_packet_loses_nothing_else(broker, name):
    with client(broker, f"{name}b") as bystander:
        bystander.subscribe(name)
        with client(broker, name) as torn:
            whole = encode(Publish(name, b"whole", 1, packet_id=1))
            torn.write(whole + encode(Publish(name, b"torn", 1, packet_id=2))[:-1])
            torn.cut()
        assert payloads(bystander.drain()) == [b"whole"]
