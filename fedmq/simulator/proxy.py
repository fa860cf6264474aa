"""A TCP proxy with bad manners: the link of one device, or of many, to a broker. Needs no root.

Two hands turn it. The weather follows a `LinkModel` by itself: rate, delay, loss (as the time it
costs a stream), sleep, windows offline with their endings. And faults by hand, at any time:
partition, reset, half open, corruption, throttle, mute.

It never drops bytes out of a stream that goes on: what is held back by a partition or swallowed
by a mute ends in a reset. It never looks inside, and it refuses nothing: a broker that is away is a
closed door. It listens on 127.0.0.1 alone.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from fedmq.simulator.carried import Carried, Side, Streams, reset
from fedmq.simulator.links import Direction, Link, LinkModel
from fedmq.simulator.outages import Ending, windows
from lifetimes.together import end

Way: TypeAlias = Literal["up", "down", "both"]

PIECE: Final = 16_384
"""Most bytes that are carried at once, where no rate says less."""

PERFECT: Final = LinkModel()


@dataclass(slots=True)
class Traffic:
    """Bytes that passed, each way, and connections that the proxy cut."""

    up: int = 0
    down: int = 0
    cuts: int = 0


class Proxy:
    """Open one with `open_proxy`. `port` is where the device connects."""

    def __init__(self, target_port: int, model: LinkModel | None, rng: random.Random) -> None:
        self.port = 0
        self.traffic = Traffic()
        self.online = True
        self._target_port = target_port
        self._model = replace(model, outages=None) if model else PERFECT
        self._outages = model.outages if model else None
        self._rng = rng
        self._link = Link(self._model, rng)
        self._clock = asyncio.get_running_loop().time
        self._since = 0.0
        self._changed = asyncio.Event()
        self._healed = asyncio.Event()
        self._parted: set[Direction] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._muted: set[Literal["weather", "hand"]] = set()
        self._flips = 0
        self._flip_rng = rng
        self._flip_reset_s = 0.0
        self._resets = 0
        self._carried: set[Carried] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def retarget(self, port: int) -> None:
        """Let new connections go to another port of this machine; reset the old ones."""
        self._target_port = port
        self.reset()

    def heal(self) -> None:
        """Turn the weather off for good, and lift every fault.

        What is under way arrives now. Connections that lost bytes, or of which only half is open,
        are reset; the others live on.
        """
        self._healed.set()
        self.online = True
        self._muted.clear()
        self._flips = 0
        self._become(PERFECT)
        self.mend()
        self._reset([each for each in self._carried if each.holed])

    def partition(self, way: Way = "both") -> None:
        """Hold what goes that way, until `mend`. Who connects now is accepted and hears nothing."""
        self._parted |= {"up", "down"} if way == "both" else {way}
        self._open.clear()

    def mend(self) -> None:
        """End the partition and a mute; reset every connection that met one."""
        self._muted.discard("hand")
        if self._parted:
            self.reset()
        self._parted.clear()
        self._open.set()
        if not self._muted:
            self._reset([each for each in self._carried if each.holed and each.silent is None])

    def reset(self) -> None:
        """Break every connection at both ends (RST)."""
        self._resets += 1
        self._reset(list(self._carried))
        for writer in list(self._silent):
            self.traffic.cuts += 1
            reset(writer)

    def half_open(self, closed: Side = "broker") -> None:
        """Close that end of every connection; leave the other open, silent and untold."""
        for carried in self._carried:
            if carried.silent is None:
                self.traffic.cuts += 1
                carried.half_open(closed)

    def corrupt(self, flips: int, rng: random.Random, reset_after_s: float = 2.0) -> None:
        """Flip a bit in each of the next pieces that pass, either way, until `flips` are made.

        A connection that was hit is reset at the latest so many seconds after its first flip.
        """
        self._flips = flips
        self._flip_rng = rng
        self._flip_reset_s = reset_after_s

    def throttle(self, bytes_per_s: float | None) -> None:
        """Let at most so many bytes a second pass, each way; None lifts it. Delays stay."""
        model = PERFECT if self._healed.is_set() else self._model
        if bytes_per_s is not None:
            up, down = min(model.rate_up, bytes_per_s), min(model.rate_down, bytes_per_s)
            model = replace(model, rate_up=up, rate_down=down)
        self._become(model)

    def mute(self) -> None:
        """Swallow what comes down, until `mend` or `heal`."""
        self._muted.add("hand")

    async def weather(self) -> None:
        """Follow the model's windows until they end or the proxy is healed."""
        if self._outages is None:
            return
        for window in windows(self._outages, self._rng):
            await self._nap(window.online_s)
            if window.ending is Ending.MUTE and not self._healed.is_set():
                self._muted.add("weather")
                await self._nap(self._outages.mute_s)
            if self._healed.is_set():
                return
            self.online = False
            if window.ending is Ending.HALF_OPEN:
                self.half_open()
            else:
                self.reset()
            self._muted.discard("weather")
            await self._nap(window.offline_s)
            self.online = True

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection of the device."""
        self.owns(asyncio.current_task())
        # asyncio's streams ask a handler for its exception, and may not ask a cancelled one
        with suppress(asyncio.CancelledError):
            if not self.online:
                reset(writer)
            elif self._parted:
                await self._hush(reader, writer)
            else:
                await self._connect((reader, writer))

    async def close(self) -> None:
        """Break what is left and wait for its end."""
        self.reset()
        while running := [task for task in self._tasks if not task.done()]:
            await end(running)

    def owns(self, task: asyncio.Task[None] | None) -> None:
        """Let `close` end this task."""
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self, device: Streams) -> None:
        before = self._resets
        try:
            broker = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            reset(device[1])
            return
        except asyncio.CancelledError:
            reset(device[1])
            raise
        carried = Carried(self, device, broker)
        if self._resets != before or not self.online:
            carried.reset()
            return
        self._carried.add(carried)
        try:
            await carried.carry()
        finally:
            self._carried.discard(carried)

    async def _hush(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep a connection that came in a partition: it is listened to by nobody."""
        self._silent.add(writer)
        try:
            with suppress(OSError):
                while await reader.read(PIECE):
                    pass
        finally:
            self._silent.discard(writer)
            reset(writer)

    def _cut(self, carried: Carried) -> None:
        if carried in self._carried:
            self._carried.discard(carried)
            self.traffic.cuts += 1
            carried.reset()

    def _reset(self, chosen: list[Carried]) -> None:
        for carried in chosen:
            self._cut(carried)

    def _become(self, model: LinkModel) -> None:
        """Have another link from now on; what is under way starts anew on it."""
        self._link = Link(model, self._rng)
        self._since = self._clock()
        self._changed.set()
        self._changed = asyncio.Event()

    async def _nap(self, seconds: float) -> None:
        """Sleep, but not longer than the weather lasts."""
        await _within(seconds, self._healed)

    # what a connection asks for (carried.Sky)

    def piece(self, direction: Direction) -> int:
        """Most bytes to carry at once: a frame where frames are lost, else a tenth of a second."""
        model = self._link.model
        rate = model.rate_up if direction == "up" else model.rate_down
        if model.loss is not None or model.lora_sf is not None:
            return model.frame_bytes
        return max(64, int(min(PIECE, rate / 10)))

    async def arrival(self, size: int, direction: Direction, read_s: float) -> None:
        """Wait until what was read then, on the loop's clock, has crossed the link."""
        while True:
            changed = self._changed
            sent_s = max(read_s, self._since)
            due_s = sent_s + self._link.stream_delay(sent_s, size, direction)
            if not await _within(due_s - self._clock(), changed):
                return

    async def passable(self, direction: Direction) -> None:
        """Wait until the direction is not partitioned."""
        while direction in self._parted:
            await self._open.wait()

    def touched(self, data: bytes, direction: Direction, carried: Carried) -> bytes:
        """Return what comes out: the same, with a bit flipped, or nothing. Counts it."""
        if self._muted and direction == "down":
            carried.holed = True
            return b""
        if self._flips > 0:
            self._flips -= 1
            data = _flipped(data, self._flip_rng)
            asyncio.get_running_loop().call_later(self._flip_reset_s, self._cut, carried)
        if direction == "up":
            self.traffic.up += len(data)
        else:
            self.traffic.down += len(data)
        return data


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait that long at most: whether the event came."""
    if seconds > 0 and not event.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()
    return event.is_set()


def _flipped(data: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    place = rng.randrange(8 * len(data))
    spoilt = bytearray(data)
    spoilt[place // 8] ^= 1 << place % 8
    return bytes(spoilt)


@asynccontextmanager
async def open_proxy(
    target_port: int, model: LinkModel | None, rng: random.Random
) -> AsyncIterator[Proxy]:
    """Open a proxy on a free loopback port and let the weather happen; None is good weather."""
    proxy = Proxy(target_port, model, rng)
    server = await asyncio.start_server(proxy.handle, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    proxy.owns(asyncio.create_task(proxy.weather()))
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
