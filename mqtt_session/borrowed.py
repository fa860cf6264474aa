"""A session over a connection that is somebody else's: the user's own aiomqtt client.

    async with aiomqtt.Client("broker") as client:
        connection = Borrowed(client)
        async with Agent(settings, trainer, connection=connection):
            async for message in client.messages:
                if not connection.deliver(message):
                    mine(message)

The client, its loop over messages and its will stay the user's. Refuses (LinkError) to go on when
a call fails or `close` was called: the agent then waits for the end of its context.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

import aiomqtt

from mqtt_session.session import Inbound, LinkError
from schemas.topics import DEFAULT_PREFIX, checked_prefix


class Borrowed:
    """What an agent needs of a connection, on a client that is connected already.

    Args:
        client: in its context; MQTT 3.1.1 or 5.
        prefix: the first levels of the topics that are ours.

    Raises:
        ConfigError: the prefix cannot work.
    """

    def __init__(self, client: aiomqtt.Client, *, prefix: str = DEFAULT_PREFIX) -> None:
        self._client = client
        self._ours = checked_prefix(prefix) + "/"
        self._inbox: list[Inbound] = []
        self._filled = asyncio.Event()
        self._closed = False

    def deliver(self, message: aiomqtt.Message) -> bool:
        """Hand a message over; False when it is none of ours."""
        topic = str(message.topic)
        if not topic.startswith(self._ours):
            return False
        payload = message.payload if isinstance(message.payload, bytes) else b""
        self._inbox.append(Inbound(topic, payload, message.retain, message.mid, message.qos))
        self._filled.set()
        return True

    def close(self) -> None:
        """The connection has ended: whoever uses it gets a LinkError."""
        self._closed = True
        self._filled.set()

    async def subscribe(self, filters: Iterable[str], *, qos: int) -> None:
        """Subscribe to topic filters in one packet. Raises LinkError."""
        self._check()
        pairs: Any = [(topic, qos) for topic in filters]
        await self._client.subscribe(pairs)

    async def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe in one packet. Raises LinkError."""
        self._check()
        await self._client.unsubscribe(list(filters))

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish and, at QoS 1, wait for the PUBACK. Raises LinkError."""
        self._check()
        await self._client.publish(topic, payload, qos=qos, retain=retain)

    async def receive(self) -> list[Inbound]:
        """Wait for messages that were delivered, and take all. Raises LinkError when closed."""
        while not self._inbox:
            self._check()
            await self._filled.wait()
            self._filled.clear()
        batch, self._inbox = self._inbox, []
        return batch

    def _check(self) -> None:
        if self._closed:
            msg = "the user's connection is closed"
            raise LinkError(msg)
