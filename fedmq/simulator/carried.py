"""One TCP connection on its way through the proxy: four loops, two a direction.

`take` reads a piece and queues it; `give` waits until the weather lets it arrive, and writes it.
Between them lie at most `AHEAD` pieces, so whoever sends too fast is slowed down by TCP itself. A
stream is never continued behind a hole: a connection that lost bytes is `holed`, and ends in a
reset.
"""

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Final, Literal, Protocol, TypeAlias

from fedmq.simulator.links import Direction
from lifetimes.together import together

AHEAD: Final = 32
"""Pieces that may be under way in one direction of one connection."""

BUFFER: Final = 32_768
"""Bytes that wait in front of a slow receiver before the sender is slowed down."""

Streams: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Side: TypeAlias = Literal["device", "broker"]


class Sky(Protocol):
    """What a connection asks the proxy for."""

    def piece(self, direction: Direction) -> int:
        """Most bytes to carry at once."""

    async def arrival(self, size: int, direction: Direction, read_s: float) -> None:
        """Wait until what was read then, on the loop's clock, has crossed the link."""

    async def passable(self, direction: Direction) -> None:
        """Wait until the direction is not partitioned."""

    def touched(self, data: bytes, direction: Direction, carried: "Carried") -> bytes:
        """Return what comes out: the same, with bits flipped, or nothing. Counts it."""


class Carried:
    """One connection of the device, and the one to the broker that answers it."""

    def __init__(self, sky: Sky, device: Streams, broker: Streams) -> None:
        self.holed = False
        self.silent: Side | None = None
        self._sky = sky
        self._ends = {"device": device, "broker": broker}
        self._gone = asyncio.Event()
        self._closing: set[Direction] = set()
        for _, writer in (device, broker):
            writer.transport.set_write_buffer_limits(high=BUFFER)

    async def carry(self) -> None:
        """Carry both ways until both have ended, or one end breaks, or a reset."""
        up: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(AHEAD)
        down: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(AHEAD)
        try:
            await together(
                self._take("up", up),
                self._give("up", up),
                self._take("down", down),
                self._give("down", down),
                self._until_gone(),
            )
        finally:
            if self._closing == {"up", "down"}:
                for _, writer in self._ends.values():
                    writer.close()
            else:
                self.reset()

    def reset(self) -> None:
        """Break both ends at once: RST, nothing is flushed."""
        self._gone.set()
        for _, writer in self._ends.values():
            reset(writer)

    def half_open(self, closed: Side) -> None:
        """Close one end; the other is left open, and what it says is heard by nobody."""
        if self.silent is None:
            self.silent = "broker" if closed == "device" else "device"
            self.holed = True
            self._ends[closed][1].close()

    async def _until_gone(self) -> None:
        await self._gone.wait()

    async def _take(
        self, direction: Direction, queue: asyncio.Queue[tuple[float, bytes | None]]
    ) -> None:
        side: Side = "device" if direction == "up" else "broker"
        reader = self._ends[side][0]
        data: bytes | None = b"-"
        while data:
            try:
                data = await reader.read(self._sky.piece(direction))
            except OSError:
                data = None
            if self.silent is not None:
                if data:
                    continue
                if side == self.silent:
                    return
                break
            await queue.put((asyncio.get_running_loop().time(), data))
        await self._until_gone()

    async def _give(
        self, direction: Direction, queue: asyncio.Queue[tuple[float, bytes | None]]
    ) -> None:
        writer = self._ends["broker" if direction == "up" else "device"][1]
        while True:
            read_s, data = await queue.get()
            await self._sky.arrival(len(data or b""), direction, read_s)
            await self._sky.passable(direction)
            if self.silent is not None:
                continue
            if data is None:
                return
            if not data:
                break
            if not await self._wrote(writer, self._sky.touched(data, direction, self)):
                await self._sky.passable("down" if direction == "up" else "up")
                if self.silent is None:
                    return
        await self._finish(direction, writer)

    async def _wrote(self, writer: asyncio.StreamWriter, data: bytes) -> bool:
        try:
            if data:
                writer.write(data)
            await writer.drain()
        except OSError:
            return False
        return True

    async def _finish(self, direction: Direction, writer: asyncio.StreamWriter) -> None:
        """Pass the end of one direction on; the other may still have something to say."""
        with suppress(OSError):
            writer.write_eof()
            self._closing.add(direction)
        if len(self._closing) < 2:
            await self._until_gone()


def reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection with RST, so that the other end cannot take it for a goodbye."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
