"""One window of chunks, or one answer, over one connection: ask, wait, and count what came.

Chunks that came are the caller's to keep. Silence is an answer too: less than was asked for.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Final, Protocol, TypeAlias

from edge_agent.catch_up import Packets, packets
from edge_agent.download import Piece
from edge_agent.settings import AgentSettings
from schemas.asking import Question, decode_reply, encode_ask
from schemas.errors import WireError
from schemas.names import DeviceId
from schemas.topics import TaskTopics

ANSWER_BYTES_MOST: Final = 1 << 17
"""A longer answer is none; the server's are at most half as long."""

_GIVEN_UP: Final = ""
"""In place of a topic: nobody waits any more."""

Fits: TypeAlias = Callable[[str, int, bytes], bool]
"""Whether these bytes can be this chunk of this blob."""


class Connection(Protocol):
    """What fetching needs of an MQTT connection."""

    async def subscribe(self, filters: Iterable[str], *, qos: int) -> None:
        """Subscribe to at most 8 topics."""

    async def unsubscribe(self, filters: Iterable[str]) -> None:
        """Unsubscribe."""

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        """Publish, and wait for the PUBACK. Raises LinkError."""


class Windows:
    """What a device asks for, a window at a time.

    Args:
        settings: for the patience.
        topics: of the task.
        device: whose answers are read.

    Attributes:
        costs: what packets cost on these topics.
        carried: bytes of chunks and answers that came since `forget`.
        spent: the same with the packets around them, about.
    """

    def __init__(self, settings: AgentSettings, topics: TaskTopics, device: DeviceId) -> None:
        self.costs: Packets = packets(topics, device)
        self.carried = 0
        self.spent = 0
        self._silence_s = settings.silence_s
        self._topics = topics
        self._ask, self._reply = topics.ask(device), topics.reply(device)
        self._arrived: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._awaited: Collection[str] = ()

    def take(self, topic: str, payload: bytes) -> None:
        """Something came that is neither manifest nor receipt nor specification."""
        if topic in self._awaited:  # of all else nobody would take it away
            self._arrived.put_nowait((topic, payload))

    def give_up(self) -> None:
        """What is awaited does not come any more: no longer wait for it."""
        if self._awaited:
            self._arrived.put_nowait((_GIVEN_UP, b""))

    def _await(self, topics: Collection[str]) -> None:
        """Listen to these from now on; what has come of others before is forgotten."""
        self._arrived, self._awaited = asyncio.Queue(), topics

    def forget(self) -> None:
        """Begin to count anew."""
        self.carried = self.spent = 0

    async def fetch(
        self, session: Connection, pieces: Collection[Piece], fits: Fits
    ) -> dict[Piece, bytes]:
        """Ask for some chunks by their exact topics and wait until they come, or silence."""
        places = {self._topics.chunk(*piece): piece for piece in pieces}
        found: dict[Piece, bytes] = {}
        self._await(places)
        await session.subscribe(list(places), qos=1)
        try:
            async with asyncio.timeout(self._silence_s) as patience:
                while len(found) < len(places):
                    topic, data = await self._arrived.get()
                    if topic == _GIVEN_UP:
                        break
                    piece = places.get(topic)
                    if piece is not None and fits(*piece, data):
                        found[piece] = data
                        now = asyncio.get_running_loop().time()
                        patience.reschedule(now + self._silence_s)
        except TimeoutError:
            pass  # what is missing tells the caller
        self._await(())
        await session.unsubscribe(list(places))
        self._count(sum(map(len, found.values())), len(places) * self.costs.chunk)
        return found

    async def ask(self, session: Connection, ask: Question) -> bytes | None:
        """Ask for one diff and wait for it; None: silence."""
        diff: bytes | None = None
        self._await([self._reply])
        await session.subscribe([self._reply], qos=1)
        await session.publish(self._ask, encode_ask(ask))
        try:
            async with asyncio.timeout(self._silence_s):
                while diff is None:
                    _, data = await self._arrived.get()
                    diff = _answer(data, ask)
        except TimeoutError:
            pass
        self._await(())
        await session.unsubscribe([self._reply])
        self._count(len(diff or b""), self.costs.ask)
        return diff

    def _count(self, carried: int, around: int) -> None:
        self.carried += carried
        self.spent += carried + around


def _answer(data: bytes, ask: Question) -> bytes | None:
    """The diff, when it is what was asked for."""
    if len(data) > ANSWER_BYTES_MOST:
        return None
    try:
        reply = decode_reply(data)
    except WireError:
        return None
    return reply.diff if reply.asked == ask else None
