"""The lab broker behind WebSocket frames: the same broker, and what it refuses."""

import asyncio
from typing import Any

import pytest
from websockets.asyncio.client import connect as dial
from websockets.exceptions import ConnectionClosed, InvalidStatus

from broker.lab import LabBroker, Limits
from mqtt_session.session import connect
from mqtt_session.settings import MqttSettings

CONNECT = bytes.fromhex("10 0d 0004 4d515454 04 02 003c 0001 61".replace(" ", ""))
PINGREQ = bytes.fromhex("c000")


def broker(**limits: int) -> LabBroker:
    return LabBroker(ws_port=0, limits=Limits(**limits))  # type: ignore[arg-type]


def url(there: LabBroker) -> str:
    return f"ws://127.0.0.1:{there.ws_port}/mqtt"


async def test_a_session_in_frames_meets_one_without() -> None:
    async with asyncio.timeout(20), broker() as there:
        framed = MqttSettings(mqtt_url=url(there))
        plain = MqttSettings(mqtt_port=there.port)
        async with (
            connect(framed, client_id="framed", clean=True) as one,
            connect(plain, client_id="plain", clean=True) as other,
        ):
            await one.subscribe(["t/#"], qos=1)
            sent = [b"%05d" % number * 2000 for number in range(100)]
            await asyncio.gather(*(other.publish(f"t/{i}", m) for i, m in enumerate(sent)))
            found: list[bytes] = []
            while len(found) < len(sent):
                found += [message.payload for message in await one.receive()]
            assert found == sent
            await other.subscribe(["back"], qos=1)
            await one.publish("back", bytes(300_000))
            (message,) = await other.receive()
            assert message.payload == bytes(300_000)


async def test_a_packet_may_come_in_many_frames_and_many_packets_in_one() -> None:
    async with asyncio.timeout(20), broker() as there, dialled(there) as socket:
        for byte in CONNECT:
            await socket.send(bytes([byte]))
        assert await socket.recv() == bytes.fromhex("20020000")
        await socket.send(PINGREQ * 3)
        answer = b""
        while len(answer) < 6:
            answer += await socket.recv()
        assert answer == bytes.fromhex("d000") * 3


def dialled(there: LabBroker, **given: Any) -> Any:
    return dial(url(there), **({"subprotocols": ["mqtt"]} | given))


async def test_the_subprotocol_is_agreed_upon() -> None:
    async with asyncio.timeout(20), broker() as there, dialled(there) as socket:
        assert socket.subprotocol == "mqtt"


@pytest.mark.parametrize("offered", [None, ["chat"]])
async def test_a_client_that_does_not_speak_mqtt_is_refused(offered) -> None:
    async with asyncio.timeout(20), broker() as there:
        with pytest.raises(InvalidStatus) as refused:
            async with dialled(there, subprotocols=offered):
                pass
    assert refused.value.response.status_code == 400


async def test_text_is_refused() -> None:
    async with asyncio.timeout(20), broker() as there, dialled(there) as socket:
        await socket.send("hello")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1003


async def test_a_message_larger_than_any_packet_is_refused() -> None:
    async with asyncio.timeout(20), broker(max_packet=1000) as there, dialled(there) as socket:
        await socket.send(bytes(2000))
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009


async def test_a_broker_that_is_asked_for_no_websockets_has_none() -> None:
    async with LabBroker() as there:
        assert there.ws_port is None
