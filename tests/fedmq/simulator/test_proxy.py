import asyncio
import math
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fedmq.simulator.links import LinkModel, Loss
from fedmq.simulator.outages import Outages
from fedmq.simulator.proxy import Proxy, Way, open_proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
STORM = LinkModel(outages=Outages(online_s=0.05, offline_s=1e9))
AWAY = LinkModel(outages=Outages(scheduled=((0.0, math.inf),)))


@asynccontextmanager
async def broker(*, echo: bool = True) -> AsyncIterator[tuple[int, asyncio.Queue[Streams]]]:
    """A server that answers every byte, or leaves its ends to the test."""
    got: asyncio.Queue[Streams] = asyncio.Queue()
    writers = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.put_nowait((reader, writer))
        writers.append(writer)
        try:
            while echo and (data := await reader.read(4096)):
                writer.write(data)
            if echo:
                writer.close()
        except OSError:
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(30):
            yield server.sockets[0].getsockname()[1], got
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@asynccontextmanager
async def through(model: LinkModel | None = None, seed: int = 0) -> AsyncIterator[Proxy]:
    async with broker() as (port, _), open_proxy(port, model, random.Random(seed)) as proxy:
        yield proxy


async def dial(proxy: Proxy) -> Streams:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def met(proxy: Proxy) -> Streams:
    """A connection whose first byte has come back."""
    reader, writer = await dial(proxy)
    writer.write(b"?")
    assert await reader.readexactly(1) == b"?"
    return reader, writer


async def was_reset(reader: asyncio.StreamReader) -> bytes:
    """What still came before the RST; a plain goodbye would fail."""
    came = b""
    try:
        while data := await reader.read(4096):
            came += data
    except ConnectionResetError:
        return came
    pytest.fail("it ended in a goodbye")


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


async def silent(answer: Awaitable[bytes], seconds: float = 0.1) -> bool:
    """Nothing comes; too short a wait can only let a fault pass, not fail a good run."""
    try:
        async with asyncio.timeout(seconds):
            await answer
    except TimeoutError:
        return True
    return False


async def test_bytes_pass_unchanged_and_are_counted_each_way() -> None:
    async with through() as proxy:
        reader, writer = await dial(proxy)
        sent = random.Random(0).randbytes(2_000_000)
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        assert (proxy.traffic.up, proxy.traffic.down) == (len(sent), len(sent))
        assert proxy.traffic.cuts == 0
        writer.close()


async def test_through_loss_delay_and_jitter_a_stream_stays_whole() -> None:
    model = LinkModel(
        rate_up=1e6, rate_down=1e6, jitter_s=0.01, loss=Loss(loss_good=0.02), frame_bytes=8000
    )
    async with through(model) as proxy:
        reader, writer = await dial(proxy)
        sent = random.Random(0).randbytes(60_000)
        writer.write(sent)
        assert await reader.readexactly(len(sent)) == sent
        writer.close()


async def test_a_goodbye_is_passed_on_after_the_last_byte() -> None:
    async with through(LinkModel(delay_s=0.05)) as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"last words")
        writer.write_eof()
        assert await reader.read() == b"last words"
        assert proxy.traffic.cuts == 0
        writer.close()


async def test_a_reader_that_does_not_read_slows_the_writer_down() -> None:
    async with broker(echo=False) as (port, got), open_proxy(port, None, random.Random(0)) as proxy:
        _, writer = await dial(proxy)
        reader, _ = await got.get()
        flood = 64 * 1024 * 1024
        writer.write(bytes(flood))
        passed = -1
        while passed != proxy.traffic.up:  # until the buffers are full and nothing moves
            passed = proxy.traffic.up
            await asyncio.sleep(0.2)
        assert passed < flood / 2
        assert len(await reader.readexactly(flood)) == flood
        writer.close()


async def test_an_online_window_ends_with_a_reset_of_both_ends() -> None:
    async with (
        broker(echo=False) as (port, got),
        open_proxy(port, STORM, random.Random(0)) as proxy,
    ):
        reader, writer = await dial(proxy)
        far, _ = await got.get()
        await was_reset(reader)
        await was_reset(far)
        assert proxy.traffic.cuts == 1
        assert not proxy.online
        writer.close()


async def test_nobody_gets_through_while_it_is_offline_until_it_is_healed() -> None:
    async with broker() as (port, got), open_proxy(port, AWAY, random.Random(0)) as proxy:
        await until(lambda: not proxy.online)
        reader, writer = await dial(proxy)
        assert await was_reset(reader) == b""
        assert proxy.traffic.up == 0
        assert got.empty()
        writer.close()
        proxy.heal()
        assert proxy.online
        _, writer = await met(proxy)
        writer.close()


async def test_a_mute_ending_carries_what_goes_up_and_swallows_what_comes_down() -> None:
    outages = Outages(online_s=1e-6, offline_s=1e9, mute_s=0.5, mute_share=1)
    async with (
        broker() as (port, got),
        open_proxy(port, LinkModel(outages=outages), random.Random(0)) as proxy,
    ):
        reader, writer = await dial(proxy)
        await got.get()
        writer.write(b"hello")
        assert await was_reset(reader) == b""
        assert (proxy.traffic.up, proxy.traffic.down) == (5, 0)
        writer.close()


async def test_a_half_open_ending_tells_the_broker_and_not_the_device() -> None:
    outages = Outages(online_s=0.2, offline_s=1e9, half_open_share=1)
    async with (
        broker(echo=False) as (port, got),
        open_proxy(port, LinkModel(outages=outages), random.Random(0)) as proxy,
    ):
        reader, writer = await dial(proxy)
        far, _ = await got.get()
        assert await far.read() == b""
        assert not proxy.online
        assert await silent(reader.read())
        writer.close()


async def test_healing_lets_what_is_under_way_arrive() -> None:
    async with through(LinkModel(delay_s=1e9)) as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"hello")
        assert await silent(reader.read(1))
        proxy.heal()
        assert await reader.readexactly(5) == b"hello"
        writer.close()


async def test_a_server_that_is_away_is_a_closed_door() -> None:
    async with broker() as (port, _):
        pass
    async with open_proxy(port, None, random.Random(0)) as proxy, asyncio.timeout(30):
        reader, writer = await dial(proxy)
        assert await was_reset(reader) == b""
        writer.close()


async def test_retargeting_resets_the_old_and_leads_the_new_elsewhere() -> None:
    async with through() as proxy, broker() as (port, got):
        reader, writer = await met(proxy)
        proxy.retarget(port)
        await was_reset(reader)
        writer.close()
        assert got.empty()
        _, writer = await met(proxy)
        assert got.qsize() == 1
        writer.close()


@pytest.mark.parametrize("way", ["up", "down", "both"])
async def test_a_partition_holds_its_direction_alone_and_mends_in_a_reset(way: Way) -> None:
    async with broker(echo=False) as (port, got), open_proxy(port, None, random.Random(0)) as proxy:
        reader, writer = await dial(proxy)
        far_reader, far_writer = await got.get()
        proxy.partition(way)
        writer.write(b"up")
        far_writer.write(b"down")
        for direction, end, word in (("up", far_reader, b"up"), ("down", reader, b"down")):
            if way in (direction, "both"):
                assert await silent(end.read(1))
            else:
                assert await end.readexactly(len(word)) == word
        proxy.mend()
        assert await was_reset(reader) == b""
        assert await was_reset(far_reader) == b""
        assert proxy.traffic.cuts == 1
        writer.close()


async def test_who_connects_in_a_partition_is_accepted_and_hears_nothing() -> None:
    async with broker() as (port, got), open_proxy(port, None, random.Random(0)) as proxy:
        proxy.partition("down")
        reader, writer = await dial(proxy)
        writer.write(b"hello")
        assert await silent(reader.read(1))
        assert got.empty()
        proxy.mend()
        assert await was_reset(reader) == b""
        writer.close()
        _, writer = await met(proxy)
        writer.close()


async def test_a_partition_hides_that_the_other_end_has_gone() -> None:
    async with broker(echo=False) as (port, got), open_proxy(port, None, random.Random(0)) as proxy:
        _, writer = await dial(proxy)
        far, far_writer = await got.get()
        proxy.partition("up")
        writer.transport.abort()
        for _ in range(5):  # what still goes down meets a closed door
            far_writer.write(b"still there?")
            await asyncio.sleep(0.01)
        assert await silent(far.read(1))
        proxy.mend()
        await was_reset(far)


async def test_a_reset_reaches_both_ends_as_a_reset() -> None:
    async with broker(echo=False) as (port, got), open_proxy(port, None, random.Random(0)) as proxy:
        reader, writer = await dial(proxy)
        far, _ = await got.get()
        proxy.reset()
        assert await was_reset(reader) == b""
        assert await was_reset(far) == b""
        writer.close()


async def test_a_reset_reaches_a_connection_that_is_still_being_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect = asyncio.open_connection
    async with through() as proxy:

        async def connect_and_reset(host: str, port: int) -> Streams:
            streams = await connect(host, port)
            proxy.reset()
            return streams

        monkeypatch.setattr(asyncio, "open_connection", connect_and_reset)
        reader, writer = await connect("127.0.0.1", proxy.port)
        assert await was_reset(reader) == b""
        writer.close()


async def test_half_open_closes_one_end_and_the_other_is_heard_by_nobody() -> None:
    async with broker(echo=False) as (port, got), open_proxy(port, None, random.Random(0)) as proxy:
        for closed in ("broker", "device"):
            device = await dial(proxy)
            far = await got.get()
            shut, left = (far, device) if closed == "broker" else (device, far)
            proxy.half_open("broker" if closed == "broker" else "device")
            assert await shut[0].read() == b""
            left[1].write(b"anybody?" * 10_000)
            await left[1].drain()
            assert await silent(left[0].read(1))
            proxy.heal()
            assert await was_reset(left[0]) == b""
            for _, writer in (device, far):
                writer.close()
        assert (proxy.traffic.up, proxy.traffic.down) == (0, 0)


async def test_what_is_under_way_when_a_connection_is_half_closed_never_arrives() -> None:
    async with (
        broker(echo=False) as (port, got),
        open_proxy(port, LinkModel(delay_s=0.3), random.Random(0)) as proxy,
    ):
        reader, writer = await dial(proxy)
        _, far_writer = await got.get()
        far_writer.write(b"too late")
        await asyncio.sleep(0.1)
        proxy.half_open()
        assert await silent(reader.read(1), 0.5)
        writer.close()


async def test_healing_leaves_a_whole_connection_alone() -> None:
    async with through() as proxy:
        reader, writer = await met(proxy)
        proxy.heal()
        writer.write(b"!")
        assert await reader.readexactly(1) == b"!"
        assert proxy.traffic.cuts == 0
        writer.close()


async def test_muted_bytes_never_leave_a_hole_in_a_stream_that_goes_on() -> None:
    async with through() as proxy:
        reader, writer = await met(proxy)
        proxy.mute()
        writer.write(b"lost")
        await until(lambda: proxy.traffic.up == 5)
        assert await silent(reader.read(1))
        proxy.mend()
        assert await was_reset(reader) == b""
        writer.close()
        _, writer = await met(proxy)
        writer.close()


async def test_corruption_flips_as_many_bits_as_told_and_then_resets() -> None:
    async with broker(echo=False) as (port, got), open_proxy(port, None, random.Random(0)) as proxy:
        _, writer = await dial(proxy)
        far, _ = await got.get()
        proxy.corrupt(3, random.Random(1), reset_after_s=0.3)
        wrong = 0
        for _ in range(5):
            writer.write(bytes(100))
            wrong += sum(byte.bit_count() for byte in await far.readexactly(100))
        assert wrong == 3
        assert await was_reset(far) == b""
        assert proxy.traffic.cuts == 1
        writer.close()


@pytest.mark.parametrize("rate", [20_000.0, 100_000.0])
async def test_a_throttle_holds_both_ways_and_lifts_at_once(rate: float) -> None:
    loop = asyncio.get_running_loop()
    async with through() as proxy:
        reader, writer = await met(proxy)
        proxy.throttle(rate)
        began = loop.time()
        writer.write(bytes(int(rate)))
        await reader.readexactly(int(rate / 2))
        assert loop.time() - began >= 0.5
        proxy.throttle(None)
        await reader.readexactly(int(rate / 2))
        writer.write(bytes(int(1e6)))
        await reader.readexactly(int(1e6))
        assert loop.time() - began < 1e6 / rate
        writer.close()


async def test_a_new_rate_holds_for_what_is_under_way_too() -> None:
    loop = asyncio.get_running_loop()
    async with through() as proxy:
        proxy.throttle(1.0)
        reader, writer = await dial(proxy)
        writer.write(bytes(1200))
        assert await silent(reader.read(1), 0.6)
        proxy.throttle(4_000.0)
        began = loop.time()
        await reader.readexactly(1200)
        assert loop.time() - began >= 0.45  # 19 pieces up, each with its 40 bytes of headers
        writer.close()


async def test_closing_the_proxy_leaves_no_task_behind() -> None:
    async with broker(echo=False) as (port, got):
        async with open_proxy(port, STORM, random.Random(5)) as proxy:
            before = asyncio.all_tasks()
            proxy.partition("up")
            ends = [await dial(proxy) for _ in range(3)]
            proxy.mend()
            ends += [await dial(proxy) for _ in range(3)]
            for _, writer in ends:
                writer.write(bytes(100_000))
            await asyncio.sleep(0)
        for _, writer in ends:
            writer.transport.abort()
        del got
        left = [task for task in asyncio.all_tasks() - before if "broker" not in repr(task)]
        assert left == []
