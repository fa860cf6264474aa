"""The TCP shell: its door, its end, and a client that does not read."""

import asyncio
import logging
import socket
from unittest.mock import create_autospec

import aiomqtt
import pytest
from servers import HOST, lab_broker

from broker.lab import LabBroker, Limits
from broker.lab.packets import ConnAck, Connect, Publish, Reader, Subscribe, encode
from broker.lab.server import _Connection, _Switchboard


async def test_the_port_is_known_while_the_context_is_open():
    broker = LabBroker()
    async with broker:
        async with aiomqtt.Client(broker.host, broker.port) as client:
            await client.publish("t", b"x", qos=1)
        assert broker.stats.received == 1
    with pytest.raises(RuntimeError, match="not running"):
        _ = broker.port


async def test_the_end_of_the_context_closes_every_client():
    async with LabBroker() as broker:
        reader, writer = await asyncio.open_connection(broker.host, broker.port)
        writer.write(encode(Connect("a")))
        assert await reader.readexactly(4) == encode(ConnAck(session_present=False, code=0))
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await reader.readexactly(1)
    writer.close()


async def test_a_host_beyond_loopback_is_warned_of(caplog):
    async with LabBroker("0.0.0.0"):  # noqa: S104 - that is what is warned of
        assert "no authentication" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        async with LabBroker():
            assert caplog.text == ""


async def test_a_client_that_does_not_read_holds_nobody_up():
    limits = Limits(max_packet=100_000, max_send_buffer=200_000)
    with socket.socket() as lazy:
        async with LabBroker(limits=limits) as broker, asyncio.timeout(20):
            await asyncio.to_thread(lazy.connect, (HOST, broker.port))
            lazy.sendall(encode(Connect("lazy")) + encode(Subscribe(1, (("t", 0),))))
            async with aiomqtt.Client(broker.host, broker.port) as client:
                await client.subscribe("t", qos=1)
                while not broker.stats.dropped_qos0:
                    await client.publish("t", bytes(90_000), qos=1)
                    message = await anext(aiter(client.messages))
                    assert len(message.payload) == 90_000
                dropped = broker.stats.dropped_qos0
                lazy.settimeout(0)
                await read_until_delivered(lazy, client)
                assert broker.stats.dropped_qos0 >= dropped


async def read_until_delivered(lazy: socket.socket, client: aiomqtt.Client) -> None:
    """Once it reads, the lazy client is served again, with messages as large as those dropped."""
    loop, reader = asyncio.get_running_loop(), Reader(max_packet=1 << 20)
    while True:
        await client.publish("t", b"again" + bytes(89_995), qos=1)
        reader.feed(await loop.sock_recv(lazy, 1 << 20))
        if any(
            isinstance(packet, Publish) and packet.payload.startswith(b"again") for packet in reader
        ):
            return


async def test_who_does_not_read_its_acknowledgements_is_not_read_either():
    switchboard = _Switchboard(Limits(max_packet=50, max_send_buffer=100))
    connection, transport = _Connection(switchboard), create_autospec(asyncio.Transport)
    transport.is_closing.return_value = False
    transport.get_write_buffer_size.return_value = 100
    connection.connection_made(transport)
    connection.write(b"x")
    transport.pause_reading.assert_not_called()
    transport.get_write_buffer_size.return_value = 101
    connection.write(b"x")
    transport.pause_reading.assert_called_once()
    transport.resume_reading.assert_not_called()
    connection.resume_writing()
    transport.resume_reading.assert_called_once()


def test_sigterm_ends_the_process_in_peace(tmp_path):
    with lab_broker(tmp_path) as server, socket.create_connection((server.host, server.port)):
        server.stop()
        assert server.process.returncode == 0


def test_a_killed_broker_starts_again_on_its_port(tmp_path):
    with lab_broker(tmp_path) as server:
        server.kill()
        server.start()
        with socket.create_connection((server.host, server.port)) as client:
            client.sendall(encode(Connect("a")))
            assert client.recv(4) == encode(ConnAck(session_present=False, code=0))
