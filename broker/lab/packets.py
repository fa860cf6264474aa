"""MQTT 3.1.1 packets <-> their bytes, for both ends of the wire (tests play the client).

Pure: bytes are fed in, packets come out. Refuses (ProtocolError) whatever the standard calls
malformed, and a packet longer than `max_packet` as soon as its length is read: nothing of its body
is waited for. Properties of MQTT 5 are not read: its CONNECT comes out as `UnknownProtocol`.
"""

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, NamedTuple, TypeAlias

from broker.lab.topic_tree import is_filter, is_topic


class ProtocolError(Exception):
    """The peer broke the protocol: its connection ends here."""


class Connect(NamedTuple):
    """The first packet of a client."""

    client_id: str
    clean_session: bool = True
    keep_alive_s: int = 0
    will: "Publish | None" = None
    username: str | None = None
    password: bytes | None = None


class UnknownProtocol(NamedTuple):
    """A CONNECT in another version of MQTT; nothing after its version was read."""

    level: int


class ConnAck(NamedTuple):
    """The answer to CONNECT; code 0 accepts."""

    session_present: bool
    code: int


class Publish(NamedTuple):
    """A message; at QoS 0 its packet id is 0."""

    topic: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    dup: bool = False
    packet_id: int = 0


class PubAck(NamedTuple):
    """A QoS 1 message arrived."""

    packet_id: int


class QosTwo(NamedTuple):
    """PUBREC (5), PUBREL (6) or PUBCOMP (7)."""

    kind: int
    packet_id: int


class Subscribe(NamedTuple):
    """Filters, each with the QoS asked."""

    packet_id: int
    filters: tuple[tuple[str, int], ...]


class SubAck(NamedTuple):
    """The QoS granted to each filter, or 0x80."""

    packet_id: int
    granted: tuple[int, ...]


class Unsubscribe(NamedTuple):
    """Filters that are wanted no more."""

    packet_id: int
    filters: tuple[str, ...]


class UnsubAck(NamedTuple):
    """The answer to UNSUBSCRIBE."""

    packet_id: int


class PingReq(NamedTuple):
    """A client says that it lives."""


class PingResp(NamedTuple):
    """The broker says so too."""


class Disconnect(NamedTuple):
    """A client says goodbye."""


Packet: TypeAlias = (
    Connect
    | UnknownProtocol
    | ConnAck
    | Publish
    | PubAck
    | QosTwo
    | Subscribe
    | SubAck
    | Unsubscribe
    | UnsubAck
    | PingReq
    | PingResp
    | Disconnect
)

PING_RESP: Final = b"\xd0\x00"
_REFUSED: Final = 0x80


class Reader:
    """Bytes in, in pieces of any size; whole packets out: `feed(data)`, then iterate to the end."""

    def __init__(self, *, max_packet: int) -> None:
        self._buffer = bytearray()
        self._max_packet = max_packet

    def feed(self, data: bytes) -> None:
        """Take what the socket had."""
        self._buffer += data

    def __iter__(self) -> Iterator[Packet]:
        """Every packet that is whole by now."""
        buffer, at = self._buffer, 0
        try:
            while (body := _body(buffer, at, self._max_packet)) is not None:
                decode, at = _DECODERS[buffer[at]], body.stop
                yield decode(bytes(buffer[body]))
        finally:
            del buffer[:at]


def _body(buffer: bytearray, at: int, max_packet: int) -> slice | None:
    """Where the body of the packet at `at` lies; None until all of it is there."""
    if at >= len(buffer):
        return None
    if buffer[at] not in _DECODERS:
        raise ProtocolError(f"no packet begins with {buffer[at]:#04x}")
    length = 0
    for index in range(at + 1, min(at + 5, len(buffer))):
        length |= (buffer[index] & 127) << 7 * (index - at - 1)
        if length > max_packet:
            raise ProtocolError(f"packet of {length} bytes or more is above {max_packet}")
        if buffer[index] < 128:
            end = index + 1 + length
            return slice(index + 1, end) if end <= len(buffer) else None
    if len(buffer) >= at + 5:
        raise ProtocolError("remaining length takes more than four bytes")
    return None


class _Fields:
    """The fields of one body, read from left to right."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def __bool__(self) -> bool:
        """Say whether anything is left."""
        return self._at < len(self._body)

    def take(self, length: int) -> bytes:
        start, self._at = self._at, self._at + length
        if self._at > len(self._body):
            raise ProtocolError("field ends after its packet")
        return self._body[start : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        return int.from_bytes(self.take(2), "big")

    def packet_id(self) -> int:
        if (number := self.number()) == 0:
            raise ProtocolError("packet id is zero")
        return number

    def blob(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        return _text(self.blob())

    def topic(self) -> str:
        return _topic(self.text())

    def filter(self) -> str:
        if not is_filter(text := self.text()):
            raise ProtocolError(f"invalid topic filter {text!r:.80}")
        return text

    def end(self) -> None:
        if self:
            raise ProtocolError("packet is longer than its fields")


def _text(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise ProtocolError("string is not UTF-8") from error
    if "\0" in text:
        raise ProtocolError("string holds a NUL")
    return text


def _topic(text: str) -> str:
    if not is_topic(text):
        raise ProtocolError(f"invalid topic {text!r:.80}")
    return text


def _decode_connect(body: bytes) -> Connect | UnknownProtocol:
    fields = _Fields(body)
    name, level = fields.blob(), fields.byte()
    if name not in {b"MQTT", b"MQIsdp"}:
        raise ProtocolError("not MQTT")
    if (name, level) != (b"MQTT", 4):
        return UnknownProtocol(level)
    bits = _connect_bits(fields.byte())
    connect = Connect(
        keep_alive_s=fields.number(),
        client_id=fields.text(),
        clean_session=bool(bits & 0x02),
        will=_decode_will(fields, bits) if bits & 0x04 else None,
        username=fields.text() if bits & 0x80 else None,
        password=fields.blob() if bits & 0x40 else None,
    )
    fields.end()
    return connect


def _connect_bits(bits: int) -> int:
    will_without_flag = bits & 0x38 and not bits & 0x04
    password_alone = bits & 0xC0 == 0x40
    if bits & 0x01 or bits & 0x18 == 0x18 or will_without_flag or password_alone:
        raise ProtocolError(f"invalid connect flags {bits:#x}")
    return bits


def _decode_will(fields: _Fields, bits: int) -> Publish:
    topic = fields.topic()
    return Publish(topic, fields.blob(), bits >> 3 & 3, bool(bits & 0x20))


def _decode_conn_ack(body: bytes) -> ConnAck:
    if len(body) != 2 or body[0] > 1:
        raise ProtocolError("invalid CONNACK")
    return ConnAck(bool(body[0]), body[1])


def _decode_publish(flags: int, body: bytes) -> Publish:
    qos = flags >> 1 & 3
    end = 2 + int.from_bytes(body[:2], "big")
    start = end + 2 if qos else end
    if start > len(body) or end == 2:
        raise ProtocolError("PUBLISH ends before its payload, or has no topic")
    packet_id = int.from_bytes(body[end:start], "big")
    if qos and not packet_id:
        raise ProtocolError("packet id is zero")
    topic = _topic(_text(body[2:end]))
    return Publish(topic, body[start:], qos, bool(flags & 1), bool(flags & 8), packet_id)


def _decode_pub_ack(body: bytes) -> PubAck:
    return PubAck(_lone_id(body))


def _decode_unsub_ack(body: bytes) -> UnsubAck:
    return UnsubAck(_lone_id(body))


def _lone_id(body: bytes) -> int:
    if len(body) != 2 or body == b"\0\0":
        raise ProtocolError("invalid acknowledgement")
    return body[0] << 8 | body[1]


def _decode_qos_two(kind: int, body: bytes) -> QosTwo:
    return QosTwo(kind, _lone_id(body))


def _decode_subscribe(body: bytes) -> Subscribe:
    fields = _Fields(body)
    packet_id = fields.packet_id()
    filters: list[tuple[str, int]] = []
    while fields or not filters:
        filters.append((fields.filter(), _asked_qos(fields.byte())))
    return Subscribe(packet_id, tuple(filters))


def _asked_qos(byte: int) -> int:
    if byte > 2:
        raise ProtocolError(f"invalid QoS {byte:#x} asked")
    return byte


def _decode_sub_ack(body: bytes) -> SubAck:
    packet_id = _Fields(body).packet_id()
    if len(body) < 3 or any(code > 2 and code != _REFUSED for code in body[2:]):
        raise ProtocolError("invalid SUBACK")
    return SubAck(packet_id, tuple(body[2:]))


def _decode_unsubscribe(body: bytes) -> Unsubscribe:
    fields = _Fields(body)
    packet_id = fields.packet_id()
    filters: list[str] = []
    while fields or not filters:
        filters.append(fields.filter())
    return Unsubscribe(packet_id, tuple(filters))


def _decode_empty(packet: Packet, body: bytes) -> Packet:
    _Fields(body).end()
    return packet


_PUBLISH_FLAGS: Final = (0, 1, 2, 3, 4, 5, 10, 11, 12, 13)
"""Retain, two bits of QoS, DUP: no QoS 3, and no DUP at QoS 0."""

_DECODERS: Final[dict[int, Callable[[bytes], Packet]]] = {
    0x10: _decode_connect,
    0x20: _decode_conn_ack,
    **{0x30 | flags: partial(_decode_publish, flags) for flags in _PUBLISH_FLAGS},
    0x40: _decode_pub_ack,
    0x50: partial(_decode_qos_two, 5),
    0x62: partial(_decode_qos_two, 6),
    0x70: partial(_decode_qos_two, 7),
    0x82: _decode_subscribe,
    0x90: _decode_sub_ack,
    0xA2: _decode_unsubscribe,
    0xB0: _decode_unsub_ack,
    0xC0: partial(_decode_empty, PingReq()),
    0xD0: partial(_decode_empty, PingResp()),
    0xE0: partial(_decode_empty, Disconnect()),
}
"""By the whole first byte: a wrong flag is refused before the body has come."""


def encode(packet: Packet) -> bytes:  # noqa: C901, PLR0911, PLR0912 - one line a kind of packet
    """The bytes of a packet, whose fields are trusted to be valid."""
    match packet:
        case Publish():
            return encode_publish(packet)
        case PubAck(packet_id):
            return struct.pack(">BBH", 0x40, 2, packet_id)
        case ConnAck(session_present, code):
            return bytes((0x20, 2, session_present, code))
        case SubAck(packet_id, granted):
            return _packet(0x90, packet_id.to_bytes(2, "big"), bytes(granted))
        case UnsubAck(packet_id):
            return struct.pack(">BBH", 0xB0, 2, packet_id)
        case PingResp():
            return PING_RESP
        case Connect():
            return _encode_connect(packet)
        case UnknownProtocol(level):
            return _packet(0x10, _field(b"MQTT"), bytes((level,)))
        case QosTwo(kind, packet_id):
            return struct.pack(">BBH", kind << 4 | (2 if kind == 6 else 0), 2, packet_id)
        case Subscribe(packet_id, filters):
            return _packet(0x82, packet_id.to_bytes(2, "big"), *_asked(filters))
        case Unsubscribe(packet_id, names):
            texts = (_field(name.encode()) for name in names)
            return _packet(0xA2, packet_id.to_bytes(2, "big"), *texts)
        case PingReq():
            return b"\xc0\x00"
        case Disconnect():
            return b"\xe0\x00"


def encode_publish(message: Publish, packet_id: int = 0, *, dup: bool = False) -> bytes:
    """The bytes of a PUBLISH; another packet id and DUP may be given without a new message."""
    topic = _field(message.topic.encode())
    first = 0x30 | message.retain | (dup or message.dup) << 3
    if not message.qos:
        return _packet(first, topic, message.payload)
    identity = (packet_id or message.packet_id).to_bytes(2, "big")
    return _packet(first | message.qos << 1, topic, identity, message.payload)


def _asked(filters: tuple[tuple[str, int], ...]) -> Iterator[bytes]:
    for text, qos in filters:
        yield _field(text.encode())
        yield bytes((qos,))


def _encode_connect(packet: Connect) -> bytes:
    will, bits = packet.will, 0x02 if packet.clean_session else 0
    payload = [_field(packet.client_id.encode())]
    if will is not None:
        bits |= 0x04 | will.qos << 3 | will.retain << 5
        payload += [_field(will.topic.encode()), _field(will.payload)]
    if packet.username is not None:
        bits |= 0x80
        payload.append(_field(packet.username.encode()))
    if packet.password is not None:
        bits |= 0x40
        payload.append(_field(packet.password))
    head = struct.pack(">BBH", 4, bits, packet.keep_alive_s)
    return _packet(0x10, _field(b"MQTT"), head, *payload)


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _packet(first: int, *parts: bytes) -> bytes:
    length = sum(map(len, parts))
    head = bytearray((first,))
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return b"".join((head, *parts))
