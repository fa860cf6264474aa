"""A TCP proxy with bad manners: one device's link to its broker. Portable, needs no root.

It delays, cuts in mid-flight, swallows acknowledgements and refuses to connect, as a schedule of
windows says; and it counts every byte that passes, each way. What passes is whole MQTT packets
or the beginnings of them; it never looks inside.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from fedmq.simulator.outages import Ending, Weather, Window, windows
from lifetimes.together import end, together


@dataclass(slots=True)
class Traffic:
    """Bytes that passed, each way, and connections that were cut."""

    up: int = 0
    down: int = 0
    cuts: int = 0


class FlakyLink:
    """The proxy of one device. `port` is where the device connects; `online` tells the weather."""

    def __init__(self, broker_port: int, weather: Weather, rng: random.Random) -> None:
        self.traffic = Traffic()
        self.online = True
        self.port = 0
        self._broker_port = broker_port
        self._weather = weather
        self._rng = rng
        self._mute = False
        self._healed = False
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    async def live(self, schedule: Iterator[Window]) -> None:
        """Follow the schedule until cancelled or healed."""
        for window in schedule:
            await asyncio.sleep(window.online_s)
            if self._healed:
                return
            if window.ending is Ending.MUTE:
                self._mute = True
                await asyncio.sleep(self._weather.mute_s)
            self.online = False
            self._cut()
            self._mute = False
            await asyncio.sleep(0 if self._healed else window.offline_s)
            self.online = True

    def heal(self) -> None:
        """The weather is good from now on."""
        self._healed = True
        self._mute = False
        self.online = True

    def _cut(self) -> None:
        for pair in list(self._pairs):
            self.traffic.cuts += 1
            for writer in pair:
                writer.transport.abort()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection of the device."""
        if not (self.online or self._healed):
            writer.transport.abort()
            return
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, up_writer)
        self._pairs.add(pair)
        # asyncio's streams ask a handler for its exception, and may not ask a cancelled one
        with suppress(asyncio.CancelledError):
            await together(
                self._pump(reader, up_writer, up=True), self._pump(up_reader, writer, up=False)
            )
        self._pairs.discard(pair)
        for each in pair:
            each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(16_384):
                if not self._healed:
                    await asyncio.sleep(self._rng.uniform(0, self._weather.delay_s))
                if self._mute and not up:
                    continue
                self._count(len(data), up=up)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def _count(self, size: int, *, up: bool) -> None:
        if up:
            self.traffic.up += size
        else:
            self.traffic.down += size


@asynccontextmanager
async def flaky_link(
    broker_port: int, weather: Weather, rng: random.Random
) -> AsyncIterator[FlakyLink]:
    """Open the proxy on a free loopback port and let the weather happen."""
    link = FlakyLink(broker_port, weather, rng)
    server = await asyncio.start_server(link.handle, "127.0.0.1", 0)
    link.port = server.sockets[0].getsockname()[1]
    task = asyncio.create_task(link.live(windows(weather, rng)))
    try:
        yield link
    finally:
        server.close()
        link._cut()  # noqa: SLF001 - the same file's own
        await end([task])
