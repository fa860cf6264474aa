"""Listening to a sensor topic, on a connection of its own beside the agent's."""

import logging
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeAlias

from edge_agent.sources.readings import decode_reading
from mqtt_session.backoff import Backoff
from mqtt_session.session import Session, connect, keep_connected
from mqtt_session.settings import MqttSettings
from schemas.errors import ConfigError

log = logging.getLogger("fedmq.agent")

OnReading: TypeAlias = Callable[[Mapping[str, float]], None]
"""Takes a reading; a ValueError says that it is none: it is counted and passed over."""

_TOPIC_MAX: Final = 65_535


def checked_topic(field: str, topic: str) -> str:
    """Check the name of one topic. Raises ConfigError: it is none, or stands for several."""
    if not topic or len(topic.encode()) > _TOPIC_MAX or "\0" in topic:
        raise ConfigError(field, f"{topic[:40]!r} is no topic: write mqtt:plant/pump-7/sensors")
    if "+" in topic or "#" in topic:
        remedy = "readings of several sensors would be mixed in one window: name one topic"
        raise ConfigError(field, f"{topic!r} stands for several topics; {remedy}")
    return topic


class Garbage:
    """Counts messages that are no readings; the first, and then every tenfold, is told."""

    def __init__(self, topic: str) -> None:
        self.count = 0
        self._topic = topic
        self._told_at = 1

    def add(self, why: str) -> None:
        """One more."""
        self.count += 1
        if self.count == self._told_at:
            self._told_at *= 10
            log.warning("garbage topic=%s count=%d error=%s", self._topic, self.count, why)


class Listener:
    """What listens to one topic until it is cancelled.

    Args:
        settings: where the broker is.
        client_id: of its own connection.
        topic: one, without wildcards.
        on_reading: see OnReading.
        on_gap: told of every new connection: what was sent meanwhile is lost.
        rng: for the jitter of reconnecting.
        longest_s: longest wait before the next try to connect.

    Raises:
        ConfigError: the topic cannot be listened to.
    """

    def __init__(
        self,
        settings: MqttSettings,
        client_id: str,
        topic: str,
        *,
        on_reading: OnReading,
        on_gap: Callable[[], None],
        rng: random.Random,
        longest_s: float,
    ) -> None:
        self._settings = settings
        self._client_id = client_id
        self._topic = checked_topic("data", topic)
        self._on_reading = on_reading
        self._on_gap = on_gap
        self._rng = rng
        self._longest_s = longest_s
        self._session: Session | None = None
        self.garbage = Garbage(topic)

    async def run(self) -> None:
        """Listen until cancelled."""
        backoff = Backoff(min(1.0, self._longest_s), self._longest_s)
        await keep_connected(self._door, self._listen, rng=self._rng, backoff=backoff)

    async def publish(self, topic: str, payload: bytes, *, qos: int = 0) -> bool:
        """Publish on the same connection; False when there is none just now.

        Raises LinkError.
        """
        if self._session is None:
            return False
        await self._session.publish(topic, payload, qos=qos)
        return True

    def _door(self) -> AbstractAsyncContextManager[Session]:
        return connect(self._settings, client_id=self._client_id, clean=True)

    async def _listen(self, session: Session) -> None:
        await session.subscribe([self._topic], qos=1)
        self._on_gap()
        self._session = session
        try:
            while True:
                for message in await session.receive():
                    if not message.retain:  # else a reading from before: it would count again
                        self._take(message.payload)
        finally:
            self._session = None

    def _take(self, payload: bytes) -> None:
        try:
            self._on_reading(decode_reading(payload))
        except ValueError as exc:
            self.garbage.add(str(exc))
