"""Packets and bytes, both ways; whatever is damaged is a ProtocolError and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.lab import packets
from broker.lab.packets import (
    ConnAck,
    Connect,
    Disconnect,
    PingReq,
    PingResp,
    ProtocolError,
    PubAck,
    Publish,
    QosTwo,
    Reader,
    SubAck,
    Subscribe,
    UnknownProtocol,
    UnsubAck,
    Unsubscribe,
    encode,
)

LEAN = settings(deadline=None, max_examples=60)
MAX = 1 << 20

PACKETS = {
    "connect": (
        Connect("edge-7", keep_alive_s=60),
        "10120004 4d515454 04 02 003c 0006 656467652d37",
    ),
    "connect_full": (
        Connect("d", clean_session=False, keep_alive_s=1, will=Publish("w", b"x", 1, retain=True),
                username="u", password=b"p"),
        "101900044d51545404ec0001 000164 000177 000178 000175 000170",
    ),
    "connect_mqtt5": (UnknownProtocol(5), "1007 0004 4d515454 05"),
    "conn_ack": (ConnAck(session_present=True, code=0), "20020100"),
    "publish_qos0": (Publish("a/b", b"hi"), "3007 0003 612f62 6869"),
    "publish_qos1": (
        Publish("a/b", b"hi", 1, retain=True, dup=True, packet_id=10),
        "3b09 0003 612f62 000a 6869",
    ),
    "publish_empty": (Publish("a", b"", retain=True), "3103000161"),
    "pub_ack": (PubAck(258), "40020102"),
    "pub_rec": (QosTwo(5, 1), "50020001"),
    "pub_rel": (QosTwo(6, 1), "62020001"),
    "pub_comp": (QosTwo(7, 1), "70020001"),
    "subscribe": (Subscribe(10, (("a/#", 1), ("+", 0))), "820c000a 0003612f2301 00012b00"),
    "sub_ack": (SubAck(10, (1, 0x80)), "9004000a0180"),
    "unsubscribe": (Unsubscribe(11, ("a/#",)), "a207000b0003612f23"),
    "unsub_ack": (UnsubAck(11), "b002000b"),
    "ping_req": (PingReq(), "c000"),
    "ping_resp": (PingResp(), "d000"),
    "disconnect": (Disconnect(), "e000"),
}  # fmt: skip

every_packet = pytest.mark.parametrize(("packet", "golden"), PACKETS.values(), ids=PACKETS)

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
TOPICS = TEXTS.filter(lambda text: text and not set(text) & set("+#"))
IDS = st.integers(1, 65_535)
BYTES = st.binary(max_size=300)
WILLS = st.tuples(TOPICS, BYTES, st.integers(0, 2), st.booleans()).map(
    lambda fields: Publish(*fields)
)
PUBLISHES = st.one_of(
    WILLS.map(lambda message: message._replace(qos=0)),
    st.builds(Publish, TOPICS, BYTES, st.integers(1, 2), st.booleans(), st.booleans(), IDS),
)
LOGINS = st.one_of(
    st.just((None, None)), st.tuples(TEXTS, st.one_of(st.none(), st.binary(max_size=9)))
)
CONNECTS = st.builds(
    lambda name, clean, alive, will, login: Connect(name, clean, alive, will, *login),
    TEXTS, st.booleans(), st.integers(0, 65_535), st.one_of(st.none(), WILLS), LOGINS,
)  # fmt: skip
FILTERS = st.one_of(TOPICS, st.just("a/+/#"))
ANY = st.one_of(
    st.sampled_from([packet for packet, _ in PACKETS.values()]),
    PUBLISHES,
    CONNECTS,
    st.builds(
        Subscribe,
        IDS,
        st.lists(st.tuples(FILTERS, st.integers(0, 2)), min_size=1, max_size=5).map(tuple),
    ),
    st.builds(Unsubscribe, IDS, st.lists(FILTERS, min_size=1, max_size=5).map(tuple)),
    st.builds(PubAck, IDS),
)


def read(data: bytes, max_packet: int = MAX) -> list:
    reader = Reader(max_packet=max_packet)
    reader.feed(data)
    return typed(reader)


def typed(found) -> list:
    """Packets are tuples: only with their types is their equality worth something."""
    return [(type(packet), packet) for packet in found]


@every_packet
def test_bytes_are_those_of_the_standard(packet, golden):
    assert encode(packet).hex() == golden.replace(" ", "")
    assert read(bytes.fromhex(golden)) == typed([packet])


@every_packet
def test_nothing_comes_of_a_packet_cut_at_any_byte(packet, golden):
    data = encode(packet)
    for length in range(len(data)):
        assert read(data[:length]) == []


@LEAN
@given(packet=ANY)
def test_every_packet_comes_back(packet):
    assert read(encode(packet)) == typed([packet])


@LEAN
@given(packet=ANY, data=st.data())
def test_a_packet_shorter_than_its_fields_is_refused_or_another_packet(packet, data):
    """The length of the frame lies: the body is cut, and the frame says so."""
    body = encode(packet)[2:]
    cut = data.draw(st.integers(0, max(0, min(len(body), 100) - 1)))
    survives(bytes((encode(packet)[0], cut)) + body[:cut])


@LEAN
@given(sent=st.lists(ANY, max_size=6), data=st.data())
def test_any_split_of_the_stream_gives_the_same_packets(sent, data):
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader, found = Reader(max_packet=MAX), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        reader.feed(stream[start:end])
        found += typed(reader)
    assert found == typed(sent)


def test_one_byte_at_a_time_gives_the_same_packets():
    sent = [packet for packet, _ in PACKETS.values()]
    reader, found = Reader(max_packet=MAX), []
    for byte in b"".join(map(encode, sent)):
        reader.feed(bytes((byte,)))
        found += typed(reader)
    assert found == typed(sent)


def survives(data: bytes) -> None:
    try:
        for _, packet in read(data):
            assert isinstance(packet, packets.Packet)
    except ProtocolError:
        pass


@LEAN
@given(data=st.binary(max_size=300))
def test_random_bytes_give_packets_or_a_protocol_error(data):
    survives(data)


@settings(LEAN, max_examples=150)
@given(first=st.integers(0, 255), body=st.binary(max_size=100))
def test_a_well_framed_random_body_gives_a_packet_or_a_protocol_error(first, body):
    survives(bytes((first, len(body))) + body)


@LEAN
@given(packet=ANY, data=st.data())
def test_a_damaged_packet_gives_packets_or_a_protocol_error(packet, data):
    damaged = bytearray(encode(packet))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(damaged))


@pytest.mark.parametrize(
    "golden",
    {
        "type 0": "0000",
        "type 15": "f000",
        "connect flags": "11120004 4d515454 04 02 003c 0006 656467652d37",
        "connect reserved bit": "10120004 4d515454 04 03 003c 0006 656467652d37",
        "connect will qos without will": "10120004 4d515454 04 0a 003c 0006 656467652d37",
        "connect password without user": "101500044d515454044200000006 656467652d37 000178",
        "connect not mqtt": "100c0004 48545450 04 02 003c 0000",
        "connect too long": "10130004 4d515454 04 02 003c 0006 656467652d37 00",
        "publish qos 3": "36070003612f62000a",
        "publish dup at qos 0": "38050003612f62",
        "publish with plus": "30050003612f2b",
        "publish with hash": "3003000123",
        "publish with nul": "3003000100",
        "publish with surrogate": "30050003eda080",
        "publish to nothing": "30020000",
        "publish id 0": "3207 0003612f62 0000",
        "publish cut in its topic": "30030003612f",
        "puback id 0": "40020000",
        "puback of three bytes": "4003000100",
        "pubrel flags": "60020001",
        "subscribe flags": "8008000a0003612f2301",
        "subscribe to nothing": "8202000a",
        "subscribe qos 3": "8208000a0003612f2303",
        "subscribe bad filter": "8208000a0003232f6101",
        "subscribe without qos": "8207000a0003612f23",
        "unsubscribe nothing": "a202000a",
        "ping with body": "c00100",
        "length of five bytes": "3080808080",
    }.items(),
    ids=lambda item: item[0].replace(" ", "_"),
)
def test_malformed(golden):
    with pytest.raises(ProtocolError):
        read(bytes.fromhex(golden[1]))


def test_packets_before_the_malformed_one_are_not_lost():
    reader, found = Reader(max_packet=MAX), []
    reader.feed(encode(PingReq()) + encode(PubAck(7)) + b"\x00")
    with pytest.raises(ProtocolError):  # noqa: PT012
        for packet in reader:
            found.append(packet)  # noqa: PERF402 - an error comes in the midst
    assert typed(found) == typed([PingReq(), PubAck(7)])


@pytest.mark.parametrize("length", [101, 16_384, 268_435_455])
def test_a_packet_above_the_bound_is_refused_before_its_body_comes(length):
    size = bytes((length >> 7 * index) & 127 | 128 for index in range(3))
    head = b"\x30" + size + bytes((length >> 21,))
    with pytest.raises(ProtocolError, match="above 100"):
        read(head, max_packet=100)


def test_a_packet_at_the_bound_is_taken():
    assert read(encode(Publish("a", bytes(97))), max_packet=100) == typed([Publish("a", bytes(97))])
