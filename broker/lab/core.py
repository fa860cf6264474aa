"""The lab broker's state machine: MQTT 3.1.1 at QoS 0 and 1.

Pure: no socket, no clock, no randomness. Connections are numbers; what happened comes in as calls,
what is to be done comes out of `take_effects`. Refuses QoS 2 (a publish ends its connection, a
subscription is granted QoS 1), MQTT 5 and MQTT 3.1. There is no authentication, no access control
and no persistence: those are for a real broker.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from broker.lab.limits import Limits
from broker.lab.packets import (
    PING_RESP,
    ConnAck,
    Connect,
    Disconnect,
    Packet,
    PingReq,
    PubAck,
    Publish,
    QosTwo,
    SubAck,
    Subscribe,
    UnknownProtocol,
    UnsubAck,
    Unsubscribe,
    encode,
    encode_publish,
)
from broker.lab.session import Session
from broker.lab.topic_tree import TopicTree

_ACCEPTED: Final = 0
_BAD_VERSION: Final = 1
_BAD_IDENTIFIER: Final = 2
_UNAVAILABLE: Final = 3

_MAX_ROUTES: Final = 4096
"""Topics whose subscribers are remembered until a subscription changes."""


class Send(NamedTuple):
    """Write this to a connection."""

    conn: int
    data: bytes


class Close(NamedTuple):
    """Close after everything sent to it; an empty reason is a client that said goodbye."""

    conn: int
    reason: str


Effect: TypeAlias = Send | Close


@dataclass
class Stats:
    """What was counted since the broker began."""

    received: int = 0
    delivered_qos0: int = 0
    queued_qos1: int = 0
    dropped_qos0: int = 0
    dropped_qos1: int = 0
    retained_refused: int = 0
    retained_bytes: int = 0


class _Link:
    """One connection; without a session until its CONNECT was accepted."""

    __slots__ = ("conn", "heard_at", "opened_at", "quiet_s", "session", "unsent", "will")

    def __init__(self, conn: int, *, opened_at: float, quiet_s: float) -> None:
        self.conn = conn
        self.opened_at = self.heard_at = opened_at
        self.quiet_s = quiet_s
        self.session: Session | None = None
        self.unsent = 0
        self.will: Publish | None = None


class Core:
    """All sessions, subscriptions and retained messages of one broker."""

    def __init__(self, limits: Limits) -> None:
        self.stats = Stats()
        self._limits = limits
        self._links: dict[int, _Link] = {}
        self._sessions: dict[str, Session] = {}
        self._subscribers: TopicTree[dict[Session, int]] = TopicTree()
        self._routes: dict[str, list[tuple[Session, int]]] = {}
        self._retained: TopicTree[Publish] = TopicTree()
        self._effects: list[Effect] = []

    # What happened

    def opened(self, conn: int, now: float) -> None:
        """Take a new connection, or close it if there are too many."""
        if len(self._links) >= self._limits.max_connections:
            self._effects.append(Close(conn, "too many connections"))
            return
        quiet_s = self._limits.connect_timeout_s
        self._links[conn] = _Link(conn, opened_at=now, quiet_s=quiet_s)

    def heard(self, conn: int, now: float) -> None:
        """Note that bytes arrived, be it a part of a packet on a slow link."""
        if (link := self._links.get(conn)) is not None:
            link.heard_at = now

    def received(self, conn: int, packet: Packet) -> None:
        """Obey a packet; after its connection was closed, ignore it."""
        link = self._links.get(conn)
        if link is None:
            return
        if link.session is None:
            self._first(link, packet)
        else:
            self._next(link, link.session, packet)

    def refused(self, conn: int, reason: str) -> None:
        """Close a connection whose bytes were malformed."""
        if (link := self._links.get(conn)) is not None:
            self._close(link, reason)

    def lost(self, conn: int) -> None:
        """Take note of a connection that ended without a word: its will is published."""
        if (link := self._links.get(conn)) is not None:
            self._end(link)

    def tick(self, now: float) -> None:
        """Close who was silent for one and a half times its keep-alive."""
        for link in list(self._links.values()):
            since = link.heard_at if link.session else link.opened_at
            if link.quiet_s and now - since > link.quiet_s:
                self._close(link, "keep-alive timeout" if link.session else "no CONNECT in time")

    def buffered(self, conn: int, size: int) -> None:
        """Learn how many bytes wait in the socket's buffer, instead of the sum of what was sent."""
        if (link := self._links.get(conn)) is not None:
            link.unsent = size

    def take_effects(self) -> list[Effect]:
        """What is to be done, in this order; each is handed out once."""
        effects, self._effects = self._effects, []
        return effects

    # Packets

    def _first(self, link: _Link, packet: Packet) -> None:
        match packet:
            case Connect():
                self._connect(link, packet)
            case UnknownProtocol(level):
                self._refuse(link, _BAD_VERSION, f"protocol level {level} is not MQTT 3.1.1")
            case _:
                self._close(link, f"{type(packet).__name__} before CONNECT")

    def _next(self, link: _Link, session: Session, packet: Packet) -> None:
        match packet:
            case Publish():
                self._publish(link, packet)
            case PubAck(packet_id):
                session.acknowledge(packet_id)
                self._fill(link, session)
            case Subscribe(packet_id, filters):
                self._subscribe(link, session, packet_id, filters)
            case Unsubscribe(packet_id, names):
                for name in names:
                    self._forget_subscription(session, name)
                self._send(link, encode(UnsubAck(packet_id)))
            case PingReq():
                self._send(link, PING_RESP)
            case Disconnect():
                link.will = None
                self._close(link, "")
            case QosTwo():
                self._close(link, "QoS 2 is not spoken here")
            case _:
                self._close(link, f"{type(packet).__name__} from a connected client")

    def _connect(self, link: _Link, packet: Connect) -> None:
        if not packet.client_id and not packet.clean_session:
            self._refuse(link, _BAD_IDENTIFIER, "a session that is kept needs a client id")
            return
        client_id = packet.client_id or f"(anonymous {link.conn})"
        self._make_way(client_id, clean=packet.clean_session)
        if client_id not in self._sessions and len(self._sessions) >= self._limits.max_sessions:
            self._refuse(link, _UNAVAILABLE, "too many sessions")
            return
        link.will, link.quiet_s = packet.will, 1.5 * packet.keep_alive_s
        self._attach(link, client_id, clean=packet.clean_session)

    def _make_way(self, client_id: str, *, clean: bool) -> None:
        """End an older connection of the same client, and its session if a clean one is asked."""
        session = self._sessions.get(client_id)
        if session is not None and session.conn is not None:
            self._close(self._links[session.conn], "session taken over by a new connection")
        if clean:
            self._forget_session(client_id)

    def _attach(self, link: _Link, client_id: str, *, clean: bool) -> None:
        session = self._sessions.get(client_id)
        self._send(link, encode(ConnAck(session is not None, _ACCEPTED)))
        if session is None:
            session = self._sessions[client_id] = Session(client_id, self._limits)
        session.clean, session.conn, link.session = clean, link.conn, session
        for frame in session.again():
            self._send(link, frame)
        self._fill(link, session)

    def _publish(self, link: _Link, message: Publish) -> None:
        if message.qos == 2:
            self._close(link, "QoS 2 is not spoken here")
            return
        self.stats.received += 1
        self._route(message)
        if message.qos:
            self._send(link, encode(PubAck(message.packet_id)))

    def _subscribe(
        self, link: _Link, session: Session, packet_id: int, filters: tuple[tuple[str, int], ...]
    ) -> None:
        granted = tuple(min(asked, 1) for _, asked in filters)
        self._send(link, encode(SubAck(packet_id, granted)))
        for (name, _), qos in zip(filters, granted, strict=True):
            self._remember_subscription(session, name, qos)
            for message in self._retained.topics_matching(name):
                self._deliver(session, message._replace(qos=min(qos, message.qos)))

    # Subscriptions and sessions

    def _remember_subscription(self, session: Session, name: str, qos: int) -> None:
        subscribers = self._subscribers.get(name)
        if subscribers is None:
            self._subscribers.put(name, {session: qos})
        else:
            subscribers[session] = qos
        session.subscriptions.add(name)
        self._routes.clear()

    def _forget_subscription(self, session: Session, name: str) -> None:
        subscribers = self._subscribers.get(name)
        if subscribers is None or subscribers.pop(session, None) is None:
            return
        if not subscribers:
            self._subscribers.pop(name)
        session.subscriptions.discard(name)
        self._routes.clear()

    def _forget_session(self, client_id: str) -> None:
        if (session := self._sessions.pop(client_id, None)) is not None:
            for name in tuple(session.subscriptions):
                self._forget_subscription(session, name)

    # Messages

    def _route(self, message: Publish) -> None:
        """Keep it if it is to be retained; hand it, live, to everyone who subscribed."""
        if message.retain:
            self._retain(message)
        route = self._route_of(message.topic)
        if not route:
            return
        lives = [Publish(message.topic, message.payload, qos) for qos in range(message.qos + 1)]
        for session, granted in route:
            self._deliver(session, lives[min(granted, message.qos)])

    def _route_of(self, topic: str) -> list[tuple[Session, int]]:
        route = self._routes.get(topic)
        if route is None:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            route = self._routes[topic] = self._find_route(topic)
        return route

    def _find_route(self, topic: str) -> list[tuple[Session, int]]:
        """Every subscriber once, at the highest QoS of its filters."""
        best: dict[Session, int] = {}
        for subscribers in self._subscribers.filters_matching(topic):
            for session, qos in subscribers.items():
                best[session] = max(qos, best.get(session, 0))
        return list(best.items())

    def _retain(self, message: Publish) -> None:
        stats, old = self.stats, self._retained.pop(message.topic)
        if old is not None:
            stats.retained_bytes -= _weight(old)
        if not message.payload:
            return
        if stats.retained_bytes + _weight(message) > self._limits.max_retained_bytes:
            stats.retained_refused += 1
            return
        stats.retained_bytes += _weight(message)
        kept = Publish(message.topic, message.payload, message.qos, retain=True)
        self._retained.put(message.topic, kept)

    def _deliver(self, session: Session, message: Publish) -> None:
        link = None if session.conn is None else self._links[session.conn]
        if message.qos:
            if session.offer(message):
                self.stats.queued_qos1 += 1
            else:
                self.stats.dropped_qos1 += 1
            if link is not None:
                self._fill(link, session)
        elif link is not None:
            self._deliver_at_most_once(link, message)

    def _deliver_at_most_once(self, link: _Link, message: Publish) -> None:
        data = encode_publish(message)
        if link.unsent + len(data) > self._limits.max_send_buffer:
            self.stats.dropped_qos0 += 1
            return
        self.stats.delivered_qos0 += 1
        self._send(link, data)

    def _fill(self, link: _Link, session: Session) -> None:
        for frame in session.fill():
            self._send(link, frame)

    # Endings

    def _send(self, link: _Link, data: bytes) -> None:
        link.unsent += len(data)
        self._effects.append(Send(link.conn, data))

    def _refuse(self, link: _Link, code: int, reason: str) -> None:
        self._send(link, encode(ConnAck(session_present=False, code=code)))
        self._close(link, reason)

    def _close(self, link: _Link, reason: str) -> None:
        self._effects.append(Close(link.conn, reason))
        self._end(link)

    def _end(self, link: _Link) -> None:
        del self._links[link.conn]
        if (session := link.session) is not None:
            session.conn = None
            if session.clean:
                self._forget_session(session.client_id)
        if link.will is not None:
            self._route(link.will._replace(qos=min(link.will.qos, 1)))


def _weight(message: Publish) -> int:
    return len(message.topic) + len(message.payload)
