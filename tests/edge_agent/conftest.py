"""Brokers for the agent, what it logs, and what it asks for."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import servers

from tests.edge_agent.played_server import BROKERS, Heard


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[servers.Server]:
    with BROKERS[request.param](tmp_path) as server:
        yield server


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[servers.Server]:
    with servers.mosquitto(tmp_path) as server:
        yield server


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    log = logging.getLogger("fedmq.agent")
    before = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    yield handler
    log.removeHandler(handler)
    log.setLevel(before)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Topics of chunks that the agent subscribes to."""
    from mqtt_session.session import Session

    topics: list[str] = []
    real = Session.subscribe

    async def subscribe(self: Session, filters: Any, *, qos: int) -> None:
        filters = list(filters)
        assert len(filters) <= 8
        topics.extend(topic for topic in filters if "/blob/" in topic)
        await real(self, filters, qos=qos)

    monkeypatch.setattr(Session, "subscribe", subscribe)
    return topics
