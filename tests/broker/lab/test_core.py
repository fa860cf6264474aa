"""The lab broker's state machine, without a socket and in its own time."""

import ast
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.lab import core, limits, packets, session, topic_tree
from broker.lab.core import Close, Core, Send
from broker.lab.limits import Limits
from broker.lab.packets import (
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    PubAck,
    Publish,
    QosTwo,
    Reader,
    SubAck,
    Subscribe,
    UnknownProtocol,
    UnsubAck,
    Unsubscribe,
)

SMALL = Limits(
    max_packet=100,
    max_inflight=3,
    max_queued=5,
    max_queued_bytes=150,
    max_send_buffer=200,
    max_retained_bytes=60,
    max_connections=4,
    max_sessions=4,
)


class World:
    """A core and the clients around it; `inbox` is what each was sent since it last looked."""

    def __init__(self, bounds: Limits | None = None) -> None:
        self.core = Core(bounds or Limits())
        self.closed: dict[int, str] = {}
        self._readers: dict[int, Reader] = {}
        self._inboxes: dict[int, list] = {}
        self._last = 0

    def open(self, now: float = 0.0) -> int:
        self._last += 1
        self._readers[self._last] = Reader(max_packet=1 << 20)
        self._inboxes[self._last] = []
        self.core.opened(self._last, now)
        self._carry_out()
        return self._last

    def connect(self, name: str, *filters: str, now: float = 0.0, qos: int = 1, **fields) -> int:
        conn = self.open(now)
        self.send(conn, Connect(name, **fields))
        if filters:
            self.send(conn, Subscribe(1, tuple((text, qos) for text in filters)))
        self.inbox(conn)
        return conn

    def keep(self, name: str, *filters: str, **fields) -> int:
        return self.connect(name, *filters, clean_session=False, **fields)

    def send(self, conn: int, *sent: packets.Packet) -> None:
        for packet in sent:
            self.core.received(conn, packet)
        self._carry_out()

    def publish(self, conn: int, topic: str, *payloads: bytes, qos: int = 1, retain=False) -> None:
        for payload in payloads:
            packet_id = 9 if qos else 0
            self.send(conn, Publish(topic, payload, qos, retain, packet_id=packet_id))

    def lose(self, conn: int) -> None:
        self.core.lost(conn)
        self._carry_out()

    def tick(self, now: float) -> None:
        self.core.tick(now)
        self._carry_out()

    def inbox(self, conn: int) -> list:
        found, self._inboxes[conn] = self._inboxes[conn], []
        return found

    def messages(self, conn: int) -> list[Publish]:
        return [packet for packet in self.inbox(conn) if isinstance(packet, Publish)]

    def payloads(self, conn: int) -> list[bytes]:
        return [message.payload for message in self.messages(conn)]

    def _carry_out(self) -> None:
        for effect in self.core.take_effects():
            match effect:
                case Send(conn, data):
                    self._readers[conn].feed(data)
                    self._inboxes[conn] += list(self._readers[conn])
                case Close(conn, reason):
                    self.closed[conn] = reason


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def small() -> World:
    return World(SMALL)


@pytest.mark.parametrize("module", [core, packets, session, topic_tree, limits])
def test_the_core_is_pure(module):
    banned = {"asyncio", "socket", "time", "random", "logging", "os"}
    tree = ast.parse(Path(module.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import)
             for alias in node.names}  # fmt: skip
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not names & banned


class TestConnecting:
    def test_a_new_client_is_accepted_without_a_session(self, world):
        conn = world.open()
        world.send(conn, Connect("a"))
        assert world.inbox(conn) == [ConnAck(session_present=False, code=0)]

    def test_a_kept_session_is_present_at_the_next_connect(self, world):
        world.lose(world.keep("a"))
        conn = world.open()
        world.send(conn, Connect("a", clean_session=False))
        assert world.inbox(conn) == [ConnAck(session_present=True, code=0)]

    def test_a_clean_connect_drops_the_kept_session(self, world):
        world.lose(world.keep("a", "t"))
        world.lose(world.connect("a"))
        conn = world.open()
        world.send(conn, Connect("a", clean_session=False))
        assert world.inbox(conn) == [ConnAck(session_present=False, code=0)]

    def test_a_clean_connect_gets_nothing_of_the_kept_session(self, world):
        kept = world.keep("a", "t")
        world.publish(kept, "t", b"unacknowledged")
        world.lose(kept)
        conn = world.open()
        world.send(conn, Connect("a"))
        world.publish(conn, "t", b"to nobody", qos=0)
        assert world.inbox(conn) == [ConnAck(session_present=False, code=0)]

    def test_another_version_is_refused_with_code_one(self, world):
        conn = world.open()
        world.send(conn, UnknownProtocol(5))
        assert world.inbox(conn) == [ConnAck(session_present=False, code=1)]
        assert "5" in world.closed[conn]

    def test_a_kept_session_needs_a_client_id(self, world):
        conn = world.open()
        world.send(conn, Connect("", clean_session=False))
        assert world.inbox(conn) == [ConnAck(session_present=False, code=2)]
        assert conn in world.closed

    def test_clients_without_an_id_do_not_disturb_each_other(self, world):
        first, second = world.connect("", "t"), world.connect("", "t")
        world.publish(first, "t", b"x", qos=0)
        assert world.payloads(first) == world.payloads(second) == [b"x"]

    @pytest.mark.parametrize("packet", [PingReq(), Publish("a", b""), PubAck(1)])
    def test_anything_before_connect_closes(self, world, packet):
        conn = world.open()
        world.send(conn, packet)
        assert conn in world.closed

    @pytest.mark.parametrize(
        "packet",
        [Connect("a"), UnknownProtocol(5), QosTwo(6, 1), Publish("t", b"", 2, packet_id=1),
         SubAck(1, (0,)), PingResp()],
    )  # fmt: skip
    def test_what_a_client_may_not_send_closes_it_and_nobody_else(self, world, packet):
        bystander, conn = world.connect("b"), world.connect("a")
        world.send(conn, packet, PingReq())
        assert list(world.closed) == [conn]
        assert world.inbox(conn) == []
        assert bystander not in world.closed

    def test_a_new_connection_takes_over(self, world):
        old = world.keep("a", "t")
        new = world.open()
        world.send(new, Connect("a", clean_session=False))
        assert "taken over" in world.closed[old]
        assert world.inbox(new) == [ConnAck(session_present=True, code=0)]
        world.lose(old)
        world.publish(new, "t", b"x")
        assert b"x" in world.payloads(new)

    def test_too_many_connections_are_closed(self, small):
        conns = [small.connect(name) for name in "abcd"]
        late = small.open()
        assert list(small.closed) == [late]
        small.lose(conns[0])
        assert small.open() not in small.closed

    def test_too_many_kept_sessions_are_refused(self, small):
        for name in "abcd":
            small.lose(small.keep(name))
        conn = small.open()
        small.send(conn, Connect("e"))
        assert small.inbox(conn) == [ConnAck(session_present=False, code=3)]


class TestDelivery:
    @pytest.mark.parametrize(
        ("published", "granted", "delivered"), [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1)]
    )
    def test_at_the_lower_of_both_qualities(self, world, published, granted, delivered):
        conn = world.connect("a", "t", qos=granted)
        world.publish(conn, "t", b"x", qos=published)
        (message,) = world.messages(conn)
        assert message[:4] == ("t", b"x", delivered, False)

    def test_quality_two_is_granted_as_one(self, world):
        conn = world.connect("a")
        world.send(conn, Subscribe(5, (("t", 2), ("u", 0))))
        assert world.inbox(conn) == [SubAck(5, (1, 0))]

    def test_a_publish_is_acknowledged_under_its_id(self, world):
        conn = world.connect("a")
        world.send(conn, Publish("t", b"", 1, packet_id=77))
        assert world.inbox(conn) == [PubAck(77)]

    @pytest.mark.parametrize("qualities", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    def test_overlapping_filters_deliver_once_at_the_highest_quality(self, world, qualities):
        conn = world.connect("a")
        world.send(conn, Subscribe(1, tuple(zip(("t/#", "t/+", "t/x"), qualities, strict=True))))
        world.publish(conn, "t/x", b"x")
        assert [message.qos for message in world.messages(conn)] == [1]

    def test_nothing_comes_after_unsubscribe(self, world):
        conn = world.connect("a", "t/+", "u")
        world.publish(conn, "t/1", b"x")
        world.send(conn, Unsubscribe(6, ("t/+", "never")))
        assert UnsubAck(6) in world.inbox(conn)
        world.publish(conn, "t/1", b"y")
        assert world.payloads(conn) == []

    def test_ping_is_answered(self, world):
        conn = world.connect("a")
        world.send(conn, PingReq())
        assert world.inbox(conn) == [PingResp()]


class TestWindowAndQueue:
    def test_no_more_than_the_window_is_in_flight(self, small):
        conn = small.connect("a", "t")
        small.publish(conn, "t", *[b"%d" % index for index in range(6)])
        assert small.payloads(conn) == [b"0", b"1", b"2"]

    def test_acknowledgements_in_any_order_open_the_window(self, small):
        conn = small.connect("a", "t")
        small.publish(conn, "t", *[b"%d" % index for index in range(6)])
        sent = small.messages(conn)
        small.send(conn, PubAck(sent[2].packet_id), PubAck(sent[0].packet_id))
        assert small.payloads(conn) == [b"3", b"4"]

    def test_an_unknown_acknowledgement_is_ignored(self, small):
        conn = small.connect("a", "t")
        small.send(conn, PubAck(999))
        assert not small.closed

    def test_unacknowledged_messages_come_again_as_duplicates_under_their_ids(self, small):
        conn = small.keep("a", "t")
        small.publish(conn, "t", b"0", b"1", b"2", b"3")
        sent = small.messages(conn)
        small.send(conn, PubAck(sent[1].packet_id))
        small.inbox(conn)
        small.lose(conn)
        again = small.open()
        small.send(again, Connect("a", clean_session=False))
        found = small.messages(again)
        assert [(m.payload, m.dup) for m in found] == [(b"0", True), (b"2", True), (b"3", True)]
        assert [m.packet_id for m in found][:2] == [sent[0].packet_id, sent[2].packet_id]
        late = [PubAck(message.packet_id) for message in found]
        small.send(again, *late)
        small.lose(again)
        assert small.payloads(small.keep("a")) == []

    def test_messages_wait_for_an_absent_client_in_their_order(self, small):
        small.lose(small.keep("a", "t"))
        other = small.connect("b")
        small.publish(other, "t", b"0", b"1", b"2", b"3")
        small.publish(other, "t", b"at most once", qos=0)
        conn = small.open()
        small.send(conn, Connect("a", clean_session=False))
        found = small.messages(conn)
        assert [(m.payload, m.dup) for m in found] == [(b"0", False), (b"1", False), (b"2", False)]
        small.send(conn, PubAck(found[0].packet_id))
        assert small.payloads(conn) == [b"3"]

    def test_a_full_queue_drops_the_newest_and_counts_it(self, small):
        small.lose(small.keep("a", "t"))
        other = small.connect("b")
        small.publish(other, "t", *[b"%d" % index for index in range(8)])
        assert small.core.stats.dropped_qos1 == 3
        assert drain(small, "a") == [b"0", b"1", b"2", b"3", b"4"]

    def test_a_queue_is_bounded_by_its_bytes_too(self, small):
        small.lose(small.keep("a", "t"))
        other = small.connect("b")
        small.publish(other, "t", bytes(80), bytes(80), bytes(20))
        assert [len(payload) for payload in drain(small, "a")] == [80, 20]
        assert small.core.stats.dropped_qos1 == 1

    def test_a_queue_that_was_emptied_has_all_its_room_again(self, small):
        small.lose(small.keep("a", "t"))
        other = small.connect("b")
        for _ in range(3):
            small.publish(other, "t", bytes(80), bytes(60))
            again = drain(small, "a")
            assert [len(payload) for payload in again] == [80, 60]
            small.lose(small.keep("a"))
        assert small.core.stats.dropped_qos1 == 0

    def test_a_client_that_does_not_read_loses_messages_of_quality_zero(self, small):
        conn = small.connect("a", "t", qos=0)
        small.core.buffered(conn, 150)
        small.publish(conn, "t", bytes(60), qos=0)
        assert small.core.stats.dropped_qos0 == 1
        small.core.buffered(conn, 0)
        small.publish(conn, "t", b"x", qos=0)
        assert small.payloads(conn) == [b"x"]

    def test_packet_ids_go_around_and_never_meet(self):
        world = World(Limits(max_inflight=2))
        conn = world.connect("a", "t")
        world.publish(conn, "t", b"kept")
        (kept,) = world.messages(conn)
        world.core._sessions["a"]._last_id = 65_534
        seen = []
        for _ in range(3):
            world.publish(conn, "t", b"x")
            (message,) = world.messages(conn)
            seen.append(message.packet_id)
            world.send(conn, PubAck(message.packet_id))
        assert kept.packet_id == 1
        assert seen == [65_535, 2, 3]


def drain(world: World, name: str) -> list[bytes]:
    """Connect, and acknowledge until nothing comes."""
    conn = world.open()
    world.send(conn, Connect(name, clean_session=False))
    payloads = []
    while found := world.messages(conn):
        payloads += [message.payload for message in found]
        world.send(conn, *[PubAck(message.packet_id) for message in found])
    return payloads


class TestRetained:
    def test_a_live_message_is_not_marked_and_a_retained_one_is(self, world):
        conn = world.connect("a", "t")
        world.publish(conn, "t", b"x", retain=True)
        assert [message.retain for message in world.messages(conn)] == [False]
        later = world.open()
        world.send(later, Connect("b"), Subscribe(1, (("t", 0),)))
        assert [(m.payload, m.retain, m.qos) for m in world.messages(later)] == [(b"x", True, 0)]

    def test_it_comes_again_at_every_subscribe(self, world):
        conn = world.connect("a")
        world.publish(conn, "t", b"x", retain=True)
        for _ in range(2):
            world.send(conn, Subscribe(1, (("t", 1),)))
            (message,) = world.messages(conn)
            assert message.qos == 1
            world.send(conn, PubAck(message.packet_id))

    def test_the_newest_stays_and_an_empty_one_clears(self, world):
        conn = world.connect("a")
        world.publish(conn, "t", b"x", b"y", retain=True)
        world.send(conn, Subscribe(1, (("t", 0),)))
        assert world.payloads(conn) == [b"y"]
        world.publish(conn, "t", b"", retain=True)
        assert world.payloads(conn) == [b""]
        world.send(conn, Subscribe(1, (("t", 0),)))
        assert world.payloads(conn) == []
        assert world.core.stats.retained_bytes == 0

    def test_its_bytes_are_bounded(self, small):
        conn = small.connect("a")
        small.publish(conn, "t", bytes(50), retain=True)
        small.publish(conn, "u", bytes(50), retain=True)
        small.send(conn, Subscribe(1, (("#", 0),)))
        assert [message.topic for message in small.messages(conn)] == ["t"]
        assert small.core.stats.retained_refused == 1


class TestWills:
    WILL = Publish("gone", b"a", 1, retain=True)

    def test_an_abnormal_end_publishes_the_will(self, world):
        watcher = world.connect("w", "gone")
        world.lose(world.connect("a", will=self.WILL))
        assert world.payloads(watcher) == [b"a"]
        world.send(watcher, Subscribe(2, (("gone", 0),)))
        assert [message.retain for message in world.messages(watcher)] == [True]

    def test_a_goodbye_does_not(self, world):
        watcher = world.connect("w", "gone")
        conn = world.connect("a", will=self.WILL)
        world.send(conn, Disconnect())
        world.lose(conn)
        assert world.closed[conn] == ""
        assert world.payloads(watcher) == []

    def test_malformed_bytes_do(self, world):
        watcher = world.connect("w", "gone")
        world.core.refused(world.connect("a", will=self.WILL), "malformed")
        world.tick(0)
        assert world.payloads(watcher) == [b"a"]

    def test_it_is_published_once(self, world):
        watcher = world.connect("w", "gone")
        conn = world.connect("a", will=self.WILL)
        world.core.refused(conn, "malformed")
        world.lose(conn)
        assert world.payloads(watcher) == [b"a"]


class TestTime:
    def test_silence_for_one_and_a_half_keep_alives_closes(self, world):
        conn = world.connect("a", keep_alive_s=10)
        world.core.heard(conn, 5.0)
        world.tick(20.0)
        assert not world.closed
        world.tick(20.1)
        assert "keep-alive" in world.closed[conn]

    def test_keep_alive_zero_never_closes(self, world):
        world.connect("a")
        world.tick(1e9)
        assert not world.closed

    def test_a_connection_without_connect_closes_however_much_it_says(self, world):
        conn = world.open(now=0.0)
        world.core.heard(conn, 9.0)
        world.tick(9.9)
        assert not world.closed
        world.tick(10.1)
        assert conn in world.closed


@pytest.mark.parametrize(
    "wrong",
    [{"max_inflight": 0}, {"max_inflight": 70_000}, {"max_packet": 1 << 30}, {"max_queued": -1}],
)
def test_limits_that_contradict_each_other_are_refused(wrong):
    with pytest.raises(ValueError, match=r"limit|max_"):
        Limits(**wrong)


OPERATIONS = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 1)),
    st.tuples(st.sampled_from(["drop", "come", "ack first", "ack last"]), st.just(0)),
)


@settings(deadline=None, max_examples=100)
@given(operations=st.lists(OPERATIONS, max_size=60))
def test_whatever_happens_a_kept_session_misses_nothing_and_keeps_the_order(operations):
    """QoS 1 through a small window, with losses of the connection and acknowledgements at will."""
    world = World(Limits(max_inflight=3))
    sender, conn = world.connect("sender"), world.keep("a", "t")
    published, first_seen, open_ids = 0, [], []

    def look() -> None:
        for message in [] if conn is None else world.messages(conn):
            if message.payload not in first_seen:
                first_seen.append(message.payload)
            open_ids.append(message.packet_id)

    for name, _ in [*operations, ("come", 0)]:
        match name:
            case "publish":
                world.publish(sender, "t", b"%d" % published)
                published += 1
            case "drop" if conn is not None:
                world.lose(conn)
                conn = None
                open_ids.clear()
            case "come" if conn is None:
                conn = world.open()
                world.send(conn, Connect("a", clean_session=False))
            case "ack first" | "ack last" if open_ids:
                world.send(conn, PubAck(open_ids.pop(0 if name == "ack first" else -1)))
        look()
    while open_ids:
        world.send(conn, PubAck(open_ids.pop(0)))
        look()
    assert first_seen == [b"%d" % index for index in range(published)]
