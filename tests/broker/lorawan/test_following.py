"""What the adapter fetches of a task: bounded, and given up when a chunk stays away."""

from collections.abc import Sequence

import numpy as np
import pytest

from broker.lorawan import following as room
from broker.lorawan.following import Following
from broker.lorawan.transfers import Models, Step
from mqtt_session.session import Inbound
from schemas.ladder import blob_name, keyframe_name
from schemas.lattice import diff_of, encode_diff, encode_keyframe, first_exponents
from schemas.messages import Manifest
from schemas.names import Epoch, ModelVersion, TaskName
from schemas.params import ParamSpec, TensorSpec
from schemas.task import PublishOptions, TaskSpec, checked_spec, spec_to_json
from schemas.topics import TaskTopics
from schemas.wire import encode_manifest

TOPICS = TaskTopics("f", TaskName("t"))
SPEC = checked_spec(
    TaskSpec(ParamSpec((TensorSpec("w", (60,)),)), publish=PublishOptions(lattice=True))
)
SIZES = (60,)
EXPONENTS = first_exponents(SPEC.params, 0.0)
Q = np.arange(60, dtype=np.int32)
STEP = Step(1, 0, 0, 1, 1, b"dddd")
DIFF = encode_diff(diff_of(Q * 0, EXPONENTS, Q, EXPONENTS, SIZES), SIZES)
KEYFRAME = encode_keyframe(Q, EXPONENTS, SIZES)
NAME = blob_name(Epoch(1), 0, 0)


class Broker:
    """What is retained, said to whoever subscribes; the far end of the connection."""

    def __init__(self, retained: dict[str, bytes]) -> None:
        self.following = Following(TOPICS, Models())
        self.asked: list[str] = []
        self._retained = retained
        manifest = Manifest(
            epoch=Epoch(1),
            version=ModelVersion(1),
            model_digest=bytes(32),
            spec_digest=SPEC.params.digest,
            codec=64,
            blob=keyframe_name(Epoch(1), ModelVersion(1)),
            blob_digest=b"",
            blob_bytes=len(KEYFRAME),
            chunk_bytes=64,
            serial=1,
            oldest=0,
        )
        for topic, payload in (
            (TOPICS.spec, spec_to_json(SPEC)),
            (TOPICS.model, encode_manifest(manifest)),
        ):
            self.following.hear(Inbound(topic, payload, retain=True, mid=1, qos=1))

    async def subscribe(self, filters: Sequence[str], *, qos: int) -> None:
        self.asked += filters
        for topic in filters:
            if topic in self._retained:
                self.following.hear(Inbound(topic, self._retained[topic], True, 1, qos))

    async def unsubscribe(self, filters: Sequence[str]) -> None:
        pass

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False
    ) -> None:
        pass


def chunks(name: str, blob: bytes, size: int = 8) -> dict[str, bytes]:
    """A blob as it is retained."""
    starts = enumerate(range(0, len(blob), size))
    return {TOPICS.chunk(name, i): blob[start : start + size] for i, start in starts}


async def test_a_diff_comes_in_its_chunks() -> None:
    broker = Broker(chunks(NAME, DIFF))
    taken = await broker.following.way(broker, STEP)
    assert taken is not None
    assert taken[0] == STEP


async def test_a_blob_that_says_it_is_too_long_is_not_fetched(caplog) -> None:
    endless = b"\xff\xff\xff\xff\x07" + DIFF
    keyframe = keyframe_name(Epoch(1), ModelVersion(1))
    broker = Broker(chunks(NAME, endless) | chunks(keyframe, KEYFRAME, 64))
    taken = await broker.following.way(broker, STEP)
    assert taken is not None
    assert (taken[0].first, taken[1]) == (None, KEYFRAME)
    assert [topic for topic in broker.asked if NAME in topic] == [TOPICS.chunk(NAME, 0)]
    assert "too_long" in caplog.text


async def test_after_a_window_with_a_hole_no_other_is_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(room, "PATIENCE_S", 0.05)
    there = chunks(NAME, DIFF, 2)
    assert len(there) > 2 + room.WINDOW
    del there[TOPICS.chunk(NAME, 3)]
    broker = Broker(there)
    assert await broker.following.way(broker, STEP) is None
    assert len([topic for topic in broker.asked if NAME in topic]) == 1 + room.WINDOW


@pytest.fixture(autouse=True)
def _told(caplog) -> None:
    caplog.set_level("INFO", "fedmq.lorawan")
