"""A session on the user's own client: what is ours is taken, the rest stays the user's."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import pytest
import servers

from mqtt_session.borrowed import Borrowed
from mqtt_session.session import LinkError
from schemas.errors import ConfigError


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.mosquitto(Path(tmp_path_factory.mktemp("borrowed"))) as server:
        yield server


@asynccontextmanager
async def users_client(broker: servers.Server) -> AsyncIterator[aiomqtt.Client]:
    async with asyncio.timeout(20), aiomqtt.Client("127.0.0.1", broker.port) as client:
        yield client


async def test_what_is_ours_is_taken_and_the_rest_is_left(broker) -> None:
    async with users_client(broker) as client:
        connection = Borrowed(client)
        await connection.subscribe(["fedmq/v1/pumps/spec", "mine"], qos=1)
        await client.publish("mine", b"kettle", qos=1)
        await connection.publish("fedmq/v1/pumps/spec", b"{}", retain=False)
        left, ours = [], 0
        async for message in client.messages:
            if connection.deliver(message):
                ours += 1
            else:
                left.append(message.payload)
            if ours and left:
                break
        assert left == [b"kettle"]
        (found,) = await connection.receive()
        assert (found.topic, found.payload) == ("fedmq/v1/pumps/spec", b"{}")


async def test_whoever_waits_is_told_that_the_connection_is_closed(broker) -> None:
    async with users_client(broker) as client:
        connection = Borrowed(client)
        waiting = asyncio.ensure_future(connection.receive())
        await asyncio.sleep(0)
        connection.close()
        with pytest.raises(LinkError):
            await waiting
        with pytest.raises(LinkError):
            await connection.publish("fedmq/v1/x", b"")


async def test_a_failing_publish_is_a_lost_link(broker) -> None:
    async with users_client(broker) as client:
        connection = Borrowed(client)
    with pytest.raises(LinkError):
        await connection.publish("fedmq/v1/x", b"")


async def test_a_prefix_that_cannot_work_is_refused(broker) -> None:
    async with users_client(broker) as client:
        with pytest.raises(ConfigError, match="prefix"):
            Borrowed(client, prefix="a/b/c/d")
