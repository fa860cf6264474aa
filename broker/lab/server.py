"""The lab broker on a TCP port: a thin shell around `broker.lab.core`.

    async with LabBroker(port=1883, ws_port=8083) as broker:
        print(broker.port, broker.ws_port)

It reads, writes, keeps the time and logs; it decides nothing. Refuses to guard anything: whoever
reaches the port may do everything, so it belongs on loopback or in a closed lab.
"""

import asyncio
import logging
from dataclasses import replace
from ipaddress import ip_address
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from broker.lab.core import Close, Core, Send, Stats
from broker.lab.limits import Limits
from broker.lab.packets import ProtocolError, Reader

if TYPE_CHECKING:
    from broker.lab.websocket import Framing

_log = logging.getLogger("fedmq.lab_broker")

_TICK_S: Final = 0.5
_CLOSE_GRACE_S: Final = 5.0
"""How long a closed client may take to read what it was sent."""


class LabBroker:
    """An MQTT 3.1.1 broker for laptops, demos and tests; it runs while its context is open."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        ws_port: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.host = host
        self._wanted_port = port
        self._wanted_ws_port = ws_port
        self._switchboard = _Switchboard(limits or Limits())
        self._server: asyncio.Server | None = None
        self._ws_server: asyncio.Server | None = None
        self._ticker: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port it listens on; 0 asked for any free one."""
        if self._server is None:
            raise RuntimeError("the lab broker is not running")
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def ws_port(self) -> int | None:
        """The WebSocket port; None when there is none."""
        if self._ws_server is None:
            return None
        return int(self._ws_server.sockets[0].getsockname()[1])

    @property
    def stats(self) -> Stats:
        """A copy of the counters."""
        return replace(self._switchboard.core.stats)

    async def __aenter__(self) -> Self:
        """Listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self._switchboard), self.host, self._wanted_port
        )
        if self._wanted_ws_port is not None:
            self._ws_server = await self._listen_for_websockets(self._wanted_ws_port)
        self._ticker = loop.call_later(_TICK_S, self._tick)
        if not _is_loopback(self.host):
            _log.warning("lab_broker_unguarded host=%s: no authentication, for labs", self.host)
        _log.info("lab_broker_listening host=%s port=%d", self.host, self.port)
        return self

    async def _listen_for_websockets(self, port: int) -> asyncio.Server:
        from broker.lab.websocket import Framing  # noqa: PLC0415 - only who wants them loads it

        max_packet = self._switchboard.limits.max_packet

        def connection() -> "_Connection":
            return _WebSocket(self._switchboard, Framing(max_packet=max_packet))

        return await asyncio.get_running_loop().create_server(connection, self.host, port)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening and drop every connection; sessions and retained messages are gone."""
        servers = [each for each in (self._server, self._ws_server) if each is not None]
        self._server = self._ws_server = None
        if self._ticker is not None:
            self._ticker.cancel()
        for server in servers:
            server.close()
        await self._switchboard.hang_up()
        for server in servers:
            await server.wait_closed()

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(_TICK_S, self._tick)
        self._switchboard.tick()


class _Switchboard:
    """All connections and the core between them."""

    def __init__(self, limits: Limits) -> None:
        self.core = Core(limits)
        self.limits = limits
        self._connections: dict[int, _Connection] = {}
        self._numbers = count(1)
        self._flushing = False
        self._told = (0, 0, 0)

    def opened(self, connection: "_Connection") -> int:
        number = next(self._numbers)
        self._connections[number] = connection
        self.core.opened(number, _now())
        self._soon()
        return number

    def heard(self, connection: "_Connection", data: bytes) -> None:
        self.core.heard(connection.number, _now())
        connection.reader.feed(data)
        try:
            for packet in connection.reader:
                self.core.received(connection.number, packet)
        except ProtocolError as error:
            self.core.refused(connection.number, str(error))
        self._soon()

    def lost(self, connection: "_Connection") -> None:
        del self._connections[connection.number]
        self.core.lost(connection.number)
        self._soon()

    def drained(self, connection: "_Connection") -> None:
        waiting = connection.transport.get_write_buffer_size()
        self.core.buffered(connection.number, waiting)

    def tick(self) -> None:
        self.core.tick(_now())
        self._soon()
        self._tell_drops()

    async def hang_up(self) -> None:
        for connection in self._connections.values():
            connection.transport.abort()
        while self._connections:  # noqa: ASYNC110 - one or two turns of the loop
            await asyncio.sleep(0)

    def _soon(self) -> None:
        """Carry out all effects of this turn of the loop together, in the next one."""
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        outgoing: dict[int, list[bytes]] = {}
        for effect in self.core.take_effects():
            match effect:
                case Send(conn, data):
                    outgoing.setdefault(conn, []).append(data)
                case Close(conn, reason):
                    self._write(conn, outgoing.pop(conn, []))
                    self._close(conn, reason)
        for conn, pieces in outgoing.items():
            self._write(conn, pieces)

    def _write(self, conn: int, pieces: list[bytes]) -> None:
        connection = self._connections.get(conn)
        if connection is not None and pieces:
            self.core.buffered(conn, connection.write(b"".join(pieces)))

    def _close(self, conn: int, reason: str) -> None:
        if (connection := self._connections.get(conn)) is not None:
            connection.close()
            level = logging.WARNING if reason else logging.DEBUG
            _log.log(level, "lab_broker_closed peer=%s reason=%r", connection.peer, reason)

    def _tell_drops(self) -> None:
        stats = self.core.stats
        dropped = (stats.dropped_qos0, stats.dropped_qos1, stats.retained_refused)
        if dropped != self._told:
            _log.warning("lab_broker_dropped qos0=%d qos1=%d retained=%d", *dropped)
            self._told = dropped


class _Connection(asyncio.Protocol):
    """One socket. Who does not read what waits for it, above a bound, is not read either."""

    transport: asyncio.Transport
    number: int

    def __init__(self, switchboard: _Switchboard) -> None:
        self.reader = Reader(max_packet=switchboard.limits.max_packet)
        self.peer = ""
        self._switchboard = switchboard
        self._bound = switchboard.limits.max_send_buffer
        self._closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what create_server makes
        self.transport = transport
        # Low enough that a buffer at its bound is reported as soon as it has drained.
        transport.set_write_buffer_limits(high=self._bound // 4)
        self.peer = str(transport.get_extra_info("peername"))
        self.number = self._switchboard.opened(self)

    def data_received(self, data: bytes) -> None:
        if not self._closed:
            self._switchboard.heard(self, data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - however it ended
        self._switchboard.lost(self)

    def resume_writing(self) -> None:
        if not self._closed:
            self.transport.resume_reading()
        self._switchboard.drained(self)

    def write(self, data: bytes) -> int:
        """Return how many bytes wait now."""
        if self.transport.is_closing():
            return 0
        self.transport.write(data)
        waiting = self.transport.get_write_buffer_size()
        if waiting > self._bound:
            self.transport.pause_reading()
        return waiting

    def close(self) -> None:
        self._closed = True
        self.transport.close()
        if self.transport.get_write_buffer_size():
            loop = asyncio.get_running_loop()
            loop.call_later(_CLOSE_GRACE_S, self.transport.abort)


class _WebSocket(_Connection):
    """The same inside WebSocket frames."""

    def __init__(self, switchboard: _Switchboard, framing: "Framing") -> None:
        super().__init__(switchboard)
        self._framing = framing

    def data_received(self, data: bytes) -> None:
        for payload in self._framing.received(data):
            super().data_received(payload)
        self._send()

    def write(self, data: bytes) -> int:
        self._framing.framed(data)
        return self._send()

    def close(self) -> None:
        self._framing.closing()
        self._send()
        super().close()

    def _send(self) -> int:
        data, last = self._framing.to_send()
        waiting = super().write(data) if data else self.transport.get_write_buffer_size()
        if last:
            super().close()
        return waiting


def _now() -> float:
    return asyncio.get_running_loop().time()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
