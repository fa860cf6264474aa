"""One MQTT connection at a time, and how to come back to it.

A session is one connection: a new client object each, because a client that is used again may
acknowledge other messages than it received. MQTT 3.1.1. Messages are handed over in batches, as
many as have come; with `manual_ack` the broker is told only when the caller says so.

Refuses to queue: `publish` returns when the broker has the message (PUBACK), so that what must
survive stays in the caller's own durable place until then.
"""

import asyncio
import logging
import random
import socket
import ssl
import struct
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, TypeVar

import aiomqtt

from lifetimes.together import together
from mqtt_session.address import Address, address_of
from mqtt_session.backoff import Backoff
from mqtt_session.settings import MqttSettings
from schemas.errors import ConfigError

log = logging.getLogger("fedmq.mqtt")
_Connection = TypeVar("_Connection")
_paho_log = logging.getLogger("fedmq.mqtt.paho")
_paho_log.setLevel(logging.CRITICAL)  # a lost link is everyday life here, and is told once, above

_NO_DELAY: Final = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
"""Small packets leave at once: Nagle and a delayed ACK cost 40 ms a receipt on a quiet link."""

_PUBACK_TYPE: Final = 0x40
_PUBACK: Final = struct.Struct("!BBH")

LinkError = aiomqtt.MqttError
"""The connection is gone, or could not be made, or the broker did not answer in time."""


@dataclass(frozen=True, slots=True)
class Inbound:
    """A message from the broker."""

    topic: str
    payload: bytes
    retain: bool
    mid: int
    qos: int


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for us when we vanish: retained, QoS 1."""

    topic: str
    payload: bytes


class _BatchingClient(aiomqtt.Client):
    """An aiomqtt client whose messages go into a deque: one wake-up for many messages."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.inbox: deque[Inbound] = deque()
        self.filled = asyncio.Event()

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:  # noqa: ARG002
        inbound = Inbound(message.topic, message.payload, message.retain, message.mid, message.qos)
        self.inbox.append(inbound)
        self.filled.set()

    def _on_disconnect(
        self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None
    ) -> None:
        """Notice a link that ends before CONNACK, too, instead of waiting for the timeout."""
        if not self._connected.done():
            self._connected.set_exception(LinkError("the link ended before CONNACK"))
            return
        if not self._connected.cancelled():
            super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002
        """Watch for room to write, unless the socket was closed before the loop came to it."""
        self._loop.call_soon_threadsafe(self._watch, client, sock)

    def _watch(self, client: Any, sock: Any) -> None:
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write, client)

    def _write(self, client: Any) -> None:
        try:
            client.loop_write()
        except Exception as exc:  # noqa: BLE001 - as aiomqtt does: whatever it is, the link is gone
            if not self.gone.done():
                self.gone.set_exception(exc)

    @property
    def gone(self) -> "asyncio.Future[None]":
        """Done when the connection is."""
        return self._disconnected


class _ClosingSocket(ssl.SSLSocket):
    """A TLS socket that closes itself when the handshake fails: paho leaves it open."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as in ssl
        try:
            super().do_handshake(block)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            self.close()
            raise


class Session:
    """One live connection."""

    def __init__(self, client: _BatchingClient) -> None:
        self._client = client

    async def subscribe(self, filters: Iterable[str], *, qos: int) -> None:
        """Subscribe to topic filters in one packet (at most 8, for AWS IoT Core's sake)."""
        pairs: Any = [(topic, qos) for topic in filters]
        await self._client.subscribe(pairs)

    async def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe in one packet."""
        await self._client.unsubscribe(list(filters))

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish and, at QoS 1, wait for the PUBACK. Raises LinkError."""
        await self._client.publish(topic, payload, qos=qos, retain=retain)

    async def receive(self) -> list[Inbound]:
        """Wait for messages and take all that have come. Raises LinkError when the link ends."""
        client = self._client
        while not client.inbox:
            await _filled_or_gone(client)
        batch = list(client.inbox)
        client.inbox.clear()
        client.filled.clear()
        return batch

    def acknowledge(self, batch: Iterable[Inbound]) -> None:
        """Tell the broker, in the order given, that these messages are safe: in one write."""
        mids = [message.mid for message in batch if message.qos == 1]
        if not mids:
            return
        acks = b"".join(_PUBACK.pack(_PUBACK_TYPE, 2, mid) for mid in mids)
        # paho would spend a packet, a wake-up and a system call on each, and has no other door
        self._client._client._packet_queue(_PUBACK_TYPE, acks, mids[-1], 1)  # noqa: SLF001


async def _filled_or_gone(client: _BatchingClient) -> None:
    if client.gone.done():
        try:
            client.gone.result()
        except LinkError:
            raise
        except Exception as exc:  # what paho makes of bytes that are no MQTT: a topic not in UTF-8
            msg = f"the broker sent what cannot be read: {exc}"
            raise LinkError(msg) from exc
        msg = "the connection is closed"
        raise LinkError(msg)
    waiter = asyncio.ensure_future(client.filled.wait())
    try:
        await asyncio.wait((waiter, client.gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()


@asynccontextmanager
async def connect(
    settings: MqttSettings,
    *,
    client_id: str,
    clean: bool,
    will: Will | None = None,
    manual_ack: bool = False,
) -> AsyncIterator[Session]:
    """Open one connection. Raises LinkError, and ConfigError for settings that cannot work."""
    address = address_of(settings)
    client = _BatchingClient(
        address.host,
        address.port,
        transport=address.transport,
        websocket_path=address.path or None,
        tls_context=_tls(address, settings),
        identifier=client_id,
        clean_session=clean,
        username=settings.mqtt_user or None,
        password=settings.mqtt_password or None,
        keepalive=settings.mqtt_keepalive_s,
        timeout=settings.mqtt_connect_timeout_s,
        will=None if will is None else aiomqtt.Will(will.topic, will.payload, 1, retain=True),
        logger=_paho_log,
        socket_options=_NO_DELAY,
    )
    client.pending_calls_threshold = 256
    paho = client._client  # noqa: SLF001 - neither setting has a door in aiomqtt 2
    paho.manual_ack_set(manual_ack)
    paho.connect_timeout = settings.mqtt_connect_timeout_s
    connected = client._connected  # noqa: SLF001 - aiomqtt forgets it when it fails
    entered = False
    try:
        async with client:
            entered = True
            yield Session(client)
    finally:
        if not entered:  # after what paho has told the loop already about its socket
            asyncio.get_running_loop().call_soon(paho._sock_close)  # noqa: SLF001 - aiomqtt won't
        for future in (client.gone, connected):
            if future.done() and not future.cancelled():
                future.exception()  # seen: asyncio need not complain that nobody looked


def _tls(address: Address, settings: MqttSettings) -> ssl.SSLContext | None:
    """Certificate and host name are verified, always. Raises ConfigError naming the file."""
    if not address.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.mqtt_ca or None)
    except OSError as exc:  # ssl.SSLError is one
        remedy = f"{settings.mqtt_ca} holds no certificates ({exc}); name a PEM file"
        raise ConfigError("mqtt_ca", remedy) from exc
    context.sslsocket_class = _ClosingSocket
    if settings.mqtt_cert:
        try:
            context.load_cert_chain(settings.mqtt_cert, settings.mqtt_key)
        except OSError as exc:
            remedy = f"{settings.mqtt_cert} and {settings.mqtt_key} do not fit ({exc})"
            raise ConfigError("mqtt_cert", remedy) from exc
    return context


async def keep_connected(
    door: Callable[[], AbstractAsyncContextManager[_Connection]],
    use: Callable[[_Connection], Awaitable[None]],
    *,
    rng: random.Random,
    backoff: Backoff,
) -> None:
    """Connect, use the session until its link ends, wait, and begin again, until cancelled.

    `use` ends a session by raising LinkError or by returning.
    """
    failures = 0
    while True:
        began, error = monotonic(), "none"
        try:
            await together(_once(door, use))
        except LinkError as exc:
            error = str(exc)
        failures = 1 if monotonic() - began > backoff.longest_s else failures + 1
        # the first of a row is worth a look; the others are its echo
        log.log(logging.WARNING if failures == 1 else logging.INFO, "link_ended error=%s", error)
        await asyncio.sleep(backoff.delay_s(failures, rng))


async def _once(
    door: Callable[[], AbstractAsyncContextManager[_Connection]],
    use: Callable[[_Connection], Awaitable[None]],
) -> None:
    async with door() as session:
        await use(session)
