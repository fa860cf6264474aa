import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fedmq.simulator.flaky_link import FlakyLink, flaky_link
from fedmq.simulator.outages import Weather

FAIR = Weather(online_s=1e9, offline_s=1e9, delay_s=0.0)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[int, asyncio.Queue[Streams]]]:
    """A server that answers every byte: its port, and the connections it gets."""
    got: asyncio.Queue[Streams] = asyncio.Queue()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.put_nowait((reader, writer))
        try:
            while data := await reader.read(4096):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server, asyncio.timeout(30):
        yield server.sockets[0].getsockname()[1], got


@asynccontextmanager
async def through(weather: Weather, seed: int = 0) -> AsyncIterator[FlakyLink]:
    async with echo() as (port, _), flaky_link(port, weather, random.Random(seed)) as link:
        yield link


async def dial(link: FlakyLink) -> Streams:
    return await asyncio.open_connection("127.0.0.1", link.port)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still came before the end."""
    try:
        return await reader.read()
    except OSError:
        return b""


async def test_bytes_pass_unchanged_and_are_counted_each_way() -> None:
    async with through(FAIR) as link:
        reader, writer = await dial(link)
        sent = random.Random(0).randbytes(200_000)
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        assert (link.traffic.up, link.traffic.down) == (len(sent), len(sent))
        assert link.traffic.cuts == 0
        writer.close()


async def test_an_online_window_ends_with_a_cut_in_mid_flight() -> None:
    async with through(Weather(online_s=0.05, offline_s=1e9, delay_s=0, mute_share=0)) as link:
        reader, writer = await dial(link)
        writer.write(b"hello")
        await ended(reader)
        assert link.traffic.cuts == 1
        assert not link.online
        writer.close()


async def test_nobody_gets_through_while_it_is_offline() -> None:
    async with through(FAIR) as link:
        link.online = False
        reader, writer = await dial(link)
        assert await ended(reader) == b""
        assert link.traffic.up == 0
        writer.close()


async def test_a_mute_ending_carries_what_goes_up_and_swallows_what_comes_down() -> None:
    weather = Weather(online_s=1e-6, offline_s=1e9, delay_s=0, mute_s=0.5, mute_share=1)
    async with echo() as (port, got), flaky_link(port, weather, random.Random(0)) as link:
        reader, writer = await dial(link)
        await got.get()
        writer.write(b"hello")
        assert await ended(reader) == b""
        assert (link.traffic.up, link.traffic.down) == (5, 0)
        writer.close()


@pytest.mark.parametrize("online", [True, False])
async def test_after_healing_everything_passes_for_good(*, online: bool) -> None:
    async with through(Weather(online_s=1e9, offline_s=1e9, delay_s=1e9)) as link:
        link.online = online
        link.heal()
        reader, writer = await dial(link)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()


async def test_a_server_that_is_away_is_a_closed_door() -> None:
    async with echo() as (port, _):
        pass
    async with flaky_link(port, FAIR, random.Random(0)) as link, asyncio.timeout(30):
        reader, writer = await dial(link)
        assert await ended(reader) == b""
        writer.close()
