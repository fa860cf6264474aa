"""MQTT over WebSocket, as bytes in and bytes out: MQTT 3.1.1, section 6.

The framing is the `websockets` library's own sans-I/O protocol. Refuses a client that does not
offer the subprotocol `mqtt`, a text frame, and a message larger than a packet may be.
"""

from collections.abc import Iterator

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

MQTT = Subprotocol("mqtt")


class Framing:
    """One connection's frames."""

    def __init__(self, *, max_packet: int) -> None:
        self._protocol = ServerProtocol(subprotocols=[MQTT], max_size=max_packet + 5)

    def received(self, data: bytes) -> Iterator[bytes]:
        """Take what came from the network; give the MQTT bytes in it."""
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            match event:
                case Request():
                    self._answer(event)
                case Frame(opcode=Opcode.BINARY | Opcode.CONT, data=payload):
                    yield bytes(payload)
                case Frame(opcode=Opcode.TEXT):
                    self._protocol.fail(CloseCode.UNSUPPORTED_DATA, "MQTT is binary")

    def _answer(self, request: Request) -> None:
        offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol"))
        if MQTT not in [each.strip() for each in offered.split(",")]:
            response = self._protocol.reject(400, "offer the subprotocol mqtt\n")
        else:
            response = self._protocol.accept(request)
        self._protocol.send_response(response)

    def framed(self, data: bytes) -> None:
        """Put MQTT bytes into a frame, unless the connection is closing."""
        if self._protocol.state.name == "OPEN":
            self._protocol.send_binary(data)

    def closing(self) -> None:
        """Begin to close."""
        if self._protocol.state.name == "OPEN":
            self._protocol.send_close(CloseCode.NORMAL_CLOSURE)

    def to_send(self) -> tuple[bytes, bool]:
        """What is to be written now, and whether it was the last."""
        chunks = self._protocol.data_to_send()
        return b"".join(chunks), SEND_EOF in chunks
